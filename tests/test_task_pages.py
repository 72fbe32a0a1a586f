"""Every command of `docs/tasks` runs in this process: for three steps, with the smallest preset of the recipe.

The synthetic corpus stands in for every built-in one, and files of the reader's own are made of its examples.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import polymodal.training
import synthetic
from polymodal.corpora import registry
from polymodal.corpora.corpus import Corpus
from test_docs import BLOCK, DOCS, status_of_main

INSTEAD = {
    r"--budget \S+": "--budget 3steps",
    r"--seeds \d+": "--seeds 1",
    r"three seven": "red green",  # classes of the synthetic corpus
    r"(attack .*)": r"\1 --examples 4",
    r"--converter\.events category concept": "--converter.events label",
    r"--volume\.image-size \d+ \d+ \d+": "--volume.image-size 16 16 16",
    r"--init hf:\S+": "",  # a download; tests/test_pretrained_page.py loads such weights
}
ELSEWHERE = {  # commands that wait, or need a download, and the tests that run them
    "serve": "tests/test_server.py",
    "score": "tests/test_aloha.py",
    "curate": "tests/test_wasm.py",
    "reproduce": "tests/test_wasm.py",
    "collect": "tests/test_review.py",
    "review": "tests/test_review.py",
    "caption": "tests/test_ulip_2.py",
    "sample-preferences": "tests/test_mpo.py",  # saves the corpus, and a catalogue is not saved
}
OTHER_PROGRAMS = ("$ pip install ", "$ python -m ")  # with packages beside polymodal: tests/test_harnesses.py
SLOW = ("vqa-and-captioning", "attacks")
PAGES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
    for page in sorted((DOCS / "tasks").glob("*.md"))
]


@pytest.fixture(scope="module")
def corpus(corpus: Corpus) -> Corpus:
    return dataclasses.replace(corpus, choices={"corpus": "scenes"})  # by which runs open it again


def smallest(recipe: Any) -> Any:
    """The smallest preset, with what the command changes of the defaults.

    But for the batch size, since what fits the data is found for the default preset.
    """
    kind, own = type(recipe), type(recipe)()
    changed = {name: getattr(recipe, name) for name in kind.__dataclass_fields__}
    chosen = {name: value for name, value in changed.items() if value != getattr(own, name)}
    return dataclasses.replace(kind.tiny(), **chosen | {"batch_size": kind.tiny().batch_size})


def training_the_smallest(train: Callable[..., Any]) -> Callable[..., Any]:
    def trained(recipe: Any, *arguments: Any, **named: Any) -> Any:
        return train(smallest(recipe), *arguments, **named)

    return trained


@pytest.fixture
def reader(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    rows = [synthetic.row(number) for number in range(48)]
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").write_bytes(row["image"])
    (tmp_path / "picture.png").write_bytes(rows[0]["image"])
    (tmp_path / "clip.mp4").write_bytes(rows[0]["video"])
    captions = [row["text"][0]["text"] + f" number {number}" for number, row in enumerate(rows)]
    pq.write_table(pa.table({"image": [row["image"] for row in rows], "caption": captions}), tmp_path / "pairs.parquet")
    write_tables(tmp_path, captions)
    write_scans(tmp_path / "scans")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "load_corpus", lambda name: corpus)
    train = training_the_smallest(polymodal.training.train)
    for module in ("polymodal.training", "polymodal.reproduce.compare"):
        monkeypatch.setattr(importlib.import_module(module), "train", train)
    return tmp_path


def write_tables(folder: Path, captions: list[str]) -> None:
    """Write folders of rated images, of records in classes and of images of events, a table beside each."""
    tables = {"photos": ["image,mos"], "records": ["image,text,label,group"], "news": ["image,text,event"]}
    for number, caption in enumerate(captions):
        tables["photos"].append(f"{number}.png,{number % 7}")
        tables["news"].append(f"{number}.png,{caption},event {number % 9}")
        tables["records"].append(f"{number}.png,{caption},class {number % 12},class {number % 12}")
    for name, lines in tables.items():
        (folder / name).mkdir()
        (folder / name / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for number in range(len(captions)):
            (folder / name / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    posts = ["id,question_text,question_code", *(f"{n},{text},draw({n})" for n, text in enumerate(captions))]
    pairs = ["first,second,label", *(f"{n},{n + 1},{('duplicate', 'different')[n % 2]}" for n in range(47))]
    (folder / "forum").mkdir()
    (folder / "forum" / "posts.csv").write_text("\n".join(posts), encoding="utf-8")
    (folder / "forum" / "pairs.csv").write_text("\n".join(pairs), encoding="utf-8")


def write_scans(folder: Path) -> None:
    """Write scans, and a table of their findings."""
    folder.mkdir()
    lines = ["scan,Lung: nodule,effusion"]
    for number in range(30):
        voxels = np.random.default_rng(number).integers(0, 90, (12, 12, 12)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"case{number}.nii.gz")
        lines.append(f"case{number},{'a nodule.' if number % 2 else ''},{'yes' if number % 3 else ''}")
    (folder / "findings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def own_data(page: str, folder: Path) -> None:
    """Write the JSON lines that a page shows, one for each image, to the file that the command below them names."""
    for block in re.finditer(r"^```json\n(.*?)\n```$", page, re.M | re.S):
        name = re.search(r"--data (\S+\.jsonl)", page[block.end() :])
        assert name is not None
        written = [block[1].replace('"0.png"', f'"{number}.png"') for number in range(48)]
        (folder / name[1]).write_text("\n".join(written) + "\n", encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_of_tasks_runs(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.read_text(encoding="utf-8")
    own_data(text, reader)
    lines = [line for kind, block in BLOCK.findall(text) for line in block.splitlines() if kind == "console"]
    assert lines
    skipped, not_trained = False, set[str]()
    for line in lines:
        if line.startswith(OTHER_PROGRAMS):
            continue
        assert line.startswith("$ polymodal "), line
        command = line[2:]
        for written, instead in INSTEAD.items():
            command = re.sub(written, instead, command)
        words = shlex.split(command, comments=True)
        if words[1] in ELSEWHERE:
            skipped = skipped or "--out" in words
            continue
        if skipped and "--data" in words and not Path(words[words.index("--data") + 1]).exists():
            not_trained |= {words[words.index("--out") + 1]} if "--out" in words else set()
            continue  # of the data that a command would have made
        if not_trained & {*words}:
            continue
        monkeypatch.setattr(sys, "argv", words)
        assert status_of_main() == 0, (line, capsys.readouterr().err)
