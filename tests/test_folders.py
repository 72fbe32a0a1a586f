"""Folders that cannot be written, are full, or that another process writes: one sentence, and nothing half-written."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import safetensors.torch

from polymodal.corpora import Corpus
from polymodal.errors import UserError, check_writable, write_errors
from polymodal.recipes.dual_encoders import clip
from polymodal.reproduce.compare import compare
from polymodal.serving.embedding import write_embeddings
from polymodal.serving.export import export
from polymodal.serving.index_build import build_index
from polymodal.serving.index_table import write_rows
from polymodal.training import Run, train
from polymodal.training.folder_lock import lock_folder
from polymodal.types import Budget


@pytest.fixture(scope="module")
def run(small_emoji: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(clip.Recipe(batch_size=16), small_emoji, Budget(steps=1), out=tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def few(small_emoji: Corpus) -> Corpus:
    return small_emoji.with_splits({name: rows[:16] for name, rows in small_emoji.splits.items()})


def unwritable(tmp_path: Path) -> Path:
    """A folder below a file, which nobody can make, not even the superuser."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "below" / "out"


def test_train_compare_and_embed_where_nothing_can_be_written(run: Run, few: Corpus, tmp_path: Path) -> None:
    out = unwritable(tmp_path)
    with pytest.raises(UserError, match=r"out cannot be written: Not a directory\.$"):
        train(clip.Recipe(batch_size=16), few, Budget(steps=1), out=out)
    with pytest.raises(UserError, match=r"out cannot be written: Not a directory\.$"):
        compare([clip.Recipe(batch_size=16)], few, Budget(steps=1), out=out, seeds=1)
    with pytest.raises(UserError, match=r"out.parquet cannot be written"):
        write_embeddings(run, few, out.with_name("out.parquet"))


def test_a_read_only_file_system_refuses_even_to_remove_nothing(
    run: Run, few: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`unlink` of a missing file fails there, too."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetWriter", refuse)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        write_embeddings(run, few, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),
        safetensors.SafetensorError("Error while serializing: No space left on device"),
    ],
    ids=["system", "tokenizers", "safetensors"],
)
def test_a_full_disk_is_one_sentence(
    error: Exception, run: Run, few: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("polymodal.modalities.text.TextTokenizer.save", refuse)
        with pytest.raises(UserError, match=r"cannot be written: the disk is full\.$"):
            train(clip.Recipe(batch_size=16), few, Budget(steps=1), out=tmp_path / "other")
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", refuse)
    with pytest.raises(UserError, match=r"cannot be written: the disk is full\.$"):
        export(run, "transformers", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), write_errors(tmp_path):
        _ = 1 / 0
    check_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())


def hold(folder: Path, ready: Any) -> None:
    with lock_folder(folder, "trained into", "wait"):
        ready.set()
        signal.pause()


def test_a_second_training_of_a_folder_is_refused_until_the_first_has_ended(few: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(folder, ready))
    holder.start()
    assert ready.wait(60)
    said = rf"run is being trained into by process {holder.pid} on {socket.gethostname()}; wait until it has stopped"
    with pytest.raises(UserError, match=said):
        train(clip.Recipe(batch_size=16), few, Budget(steps=1), out=folder)
    assert not folder.exists()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)  # a crash leaves the file, and no lock
    holder.join()
    assert (tmp_path / ".run.lock").exists()
    train(clip.Recipe(batch_size=16), few, Budget(steps=1), out=folder)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_training_that_stops_with_an_error_frees_its_folder(few: Corpus, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clip.Recipe(batch_size=16), few, Budget(steps=2), out=tmp_path / "run", on_step=stop)
    assert train(clip.Recipe(batch_size=16), few, Budget(steps=2), out=tmp_path / "run").record["state"] == "finished"


def test_a_second_writer_of_an_index_is_refused(run: Run, few: Corpus, tmp_path: Path) -> None:
    place = tmp_path / "index"
    with (
        lock_folder(place, "written", "wait"),
        pytest.raises(UserError, match=f"index is being written by process {os.getpid()}"),
    ):
        build_index(run, few, str(place))
    assert not place.exists()


def test_an_index_without_a_column_of_its_data_says_what_to_do() -> None:
    class Table:
        schema = pa.schema({"key": pa.string()})

    with pytest.raises(UserError, match=r"index has no column new, which the data has now; remove the index and make"):
        write_rows("index", Table(), pa.table({"key": ["a"], "new": [1]}), None, replacing=True)  # type: ignore[arg-type]


def test_the_command_line_ends_with_a_sentence_on_a_full_disk() -> None:
    program = (
        "import errno, sys; from polymodal import cli\n"
        "def full(_): raise OSError(errno.ENOSPC, 'No space left on device', 'x.txt')\n"
        "cli.COMMANDS['list'] = full; sys.argv = ['polymodal', 'list']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "polymodal: x.txt cannot be written: No space left on device.\n"
