"""Links and pipes in the folders of every format: what links name is read, and nothing is waited for."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from polymodal.corpora.data_report import report_on
from polymodal.corpora.sources import from_path
from polymodal.errors import UnreadableExample
from polymodal.files import open_regular
from polymodal.modalities.modality import read_file
from test_fuzz import SAMPLES_AND_SAVED, in_a_sentence, look_at, sample

assert sample  # a fixture
QUICK = ("coco", "imagefolder", "json")
SECONDS = 20
FORMATS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SAMPLES_AND_SAVED]


class TooLong(BaseException):
    """Nothing may catch it."""


@contextmanager
def bounded(seconds: int = SECONDS) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content(path: Path) -> tuple[dict[str, int], dict[tuple[int, str], str]]:
    """Return the sizes of the splits, and every value that can be read."""
    corpus, values = from_path(path), {}
    report_on(corpus, 100)
    for row in range(len(corpus)):
        for column in corpus.columns:
            with suppress(UnreadableExample):
                values[row, column] = repr(corpus.value(row, column))[:200].split(" at 0x")[0]
    return {name: len(rows) for name, rows in corpus.splits.items()}, values


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_are_links_and_folders_that_lead_back_are_read(name, sample, tmp_path):
    folder, given = sample(name)
    wanted = content(folder / given)
    linked, blobs = tmp_path / "linked", tmp_path / "blobs"  # as in the cache of the hub
    shutil.copytree(folder, linked)
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in linked.rglob("*") if path.is_file())):
        shutil.move(file, blobs / f"{number:08x}")
        file.symlink_to(blobs / f"{number:08x}")
    with bounded():
        assert content(linked / given) == wanted
    circular = tmp_path / "circular"
    shutil.copytree(folder, circular)
    for below in sorted(path for path in circular.rglob("*") if path.is_dir()):
        (below / "up").symlink_to("..")
    (circular / "here").symlink_to(".")
    with bounded():
        assert content(circular / given) == wanted


@pytest.mark.parametrize("name", FORMATS)
def test_links_to_nowhere_and_pipes_end_in_a_sentence(name, sample, tmp_path):
    folder, given = sample(name)
    of_suffix = {path.suffix or path.name: path for path in sorted(folder.rglob("*")) if path.is_file()}
    for file in (path.relative_to(folder) for path in of_suffix.values()):
        for kind in ("nowhere", "circle", "pipe"):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            (copy / file).unlink()
            if kind == "pipe":
                os.mkfifo(copy / file)
            else:
                (copy / file).symlink_to("gone" if kind == "nowhere" else file.name)
            with bounded(), in_a_sentence(f"{name}: {file} is a {kind}"):
                look_at(copy / given)


def test_a_pipe_that_a_row_names_is_an_unreadable_example(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    with bounded(5), pytest.raises(UnreadableExample, match=r"0\.png cannot be read: it is a pipe"):
        read_file("0.png", tmp_path, "image")
    for place, error in ((tmp_path, IsADirectoryError), (Path(os.devnull), OSError)):
        with pytest.raises(error):
            open_regular(place)
    (tmp_path / "a").write_bytes(b"bytes")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"bytes"
