"""Commands that write one folder or file exclude each other, in a sentence that names the owner."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock, Timeout

from polymodal.curation.captions import write_captions
from polymodal.curation.pipeline import WRITING, curate_pages
from polymodal.curation.preferences import write_preferences
from polymodal.data.loader import killed_workers
from polymodal.errors import UserError
from polymodal.reproduce.compare import compare
from polymodal.reproduce.tuning import tune
from polymodal.serving.embedding import write_embeddings
from polymodal.training.folder_lock import lock_folder, writes


@writes("out")
def double(number: int, out: Path | None = None) -> int:
    return 2 * number


WRITERS = {
    "caption": (write_captions, "folder"),
    "sample-preferences": (write_preferences, "folder"),
    "curate": (curate_pages, "out"),
    "embed": (write_embeddings, "out"),
    "compare": (compare, "out"),
    "tune": (tune, "out"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_second_writer_is_told_who_the_first_is(name, tmp_path):
    function, argument = WRITERS[name]
    needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    given: dict[str, Any] = {one.name: SimpleNamespace() for one in needed} | {argument: tmp_path / "out"}
    with lock_folder(tmp_path / "out", "written", "wait"), pytest.raises(UserError) as error:
        function(**given)
    said = str(error.value)
    assert "out is being written by process " in said
    assert " on " in said
    assert "--out" in said
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_free_again_and_a_dead_process_holds_none(tmp_path):
    (tmp_path / ".out.lock").write_text("process 1 on elsewhere")  # a file that a crash left
    assert double(3, tmp_path / "out") == 6
    assert double(4, out=tmp_path / "out") == 8
    assert double(5) == 10
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_end_in_a_sentence(tmp_path, polymodal):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to("gone/there")
    (tmp_path / "loop").symlink_to("loop")
    for place, reason in {"nowhere": "is a link to gone/there", "loop/a": "cannot be written"}.items():
        with pytest.raises(UserError, match=reason), lock_folder(tmp_path / place, "written", "wait"):
            pass
    for out in ("file", "file/below", "nowhere", "loop", "n" * 300):
        done = polymodal("train", "clip", "--corpus", "digits", "--budget", "1steps", "--out", out)
        assert done.returncode == 2, out
        assert done.stderr.startswith("polymodal: "), (out, done.stderr)
        assert "Traceback" not in done.stderr, out
    (tmp_path / "a.csv").write_text("text\n" + "a\n" * 30)
    for out in ("loop", "n" * 300):
        done = polymodal("data", "a.csv", "--out", f"elsewhere/../{out}" if out == "loop" else out)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), (out, done.stderr)


def test_where_no_file_can_be_made_nobody_else_is_blamed(tmp_path, monkeypatch):
    def refuses(self: Any) -> None:
        raise Timeout(self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", refuses)
    with pytest.raises(UserError, match="cannot be written"), lock_folder(tmp_path / "out", "written", "wait"):
        pass


def test_a_killed_worker_ends_in_a_sentence():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(UserError, match=r"killed by signal: Killed.*fewer --num-workers"), killed_workers():
        raise killed
    with pytest.raises(RuntimeError, match="of another kind"), killed_workers():
        raise RuntimeError("of another kind")


def test_a_folder_half_written_by_curate_is_written_again(tmp_path, monkeypatch):
    from polymodal.curation import pipeline

    recipe, out = SimpleNamespace(steps=lambda known: {}), tmp_path / "out"
    pages_out = {"read": SimpleNamespace(pages_in=1, pages_out=1)}
    monkeypatch.setattr(pipeline, "recipe_record", lambda recipe: {})
    monkeypatch.setattr(pipeline, "_tables", lambda *_: iter(()))
    monkeypatch.setattr(pipeline, "_counted", lambda *_: pages_out)

    def killed(*_: Any) -> None:
        out.mkdir()
        (out / "half.parquet").write_text("half")
        raise SystemExit(9)

    monkeypatch.setattr(pipeline, "_written", killed)
    with pytest.raises(SystemExit):
        curate_pages(recipe, [], out, None)
    assert (tmp_path / ".out.curating" / WRITING).is_file()

    def whole(*_: Any) -> str:
        assert not out.exists()
        out.mkdir()
        (out / "whole.parquet").write_text("whole")
        return "corpus"

    monkeypatch.setattr(pipeline, "_written", whole)
    assert curate_pages(recipe, [], out, None) == ("corpus", pages_out)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["whole.parquet"]
    with pytest.raises(UserError, match="is not empty"):
        curate_pages(recipe, [], out, None)
