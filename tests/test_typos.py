"""A typo in any argument ends in one sentence with the nearest valid name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polymodal.errors import nearest_path
from test_corpora import pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a new user has one: pairs, pages of HTML in a folder named like a corpus, and a run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "pairs").mkdir()
    lines = ["image,caption"]
    for number, pair in enumerate(pairs(12)):
        (folder / "pairs" / f"{number}.png").write_bytes(pair["image"])
        lines.append(f"{number}.png,{pair['caption']}")
    (folder / "pairs" / "pairs.csv").write_text("\n".join(lines))
    (folder / "pages").mkdir()
    (folder / "pages" / "one.html").write_text("<p>A page of the user's own with a few words in it.</p>")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "collection").mkdir()
    return folder


CLIP = ("train", "clip", "--data", "pairs")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*CLIP, "--buget", "2steps"], "There is no flag --buget; did you mean --budget?"),
        ([*CLIP, "--learning_rat=1"], "There is no flag --learning_rat; did you mean --learning-rate?"),
        ([*CLIP, "--augmentation.scal", "1", "1"], "did you mean --augmentation.scale?"),
        ([*CLIP, "--zzz", "1"], "There is no flag --zzz; `polymodal train clip --help` lists the flags."),
        ([*CLIP, "--keep", "bst"], ", not 'bst'; did you mean best?"),
        ([*CLIP, "--batch-size", "ten"], "--batch-size is a whole number, not 'ten'."),
        ([*CLIP, "--learning-rate", "fast"], "--learning-rate is a number, not 'fast'."),
        ([*CLIP, "--budget"], "`polymodal train clip --help` explains it."),
        ([*CLIP, "--init", "runs/mien"], "did you mean runs/mine?"),
        (["train", "clip", "--data", "pair"], "There is no file or folder pair; did you mean pairs?"),
        (["train", "clip", "--data", "pairs/pairs.cvs"], "did you mean pairs/pairs.csv?"),
        (["train", "clip", "--data", "zzz"], "There is no file or folder zzz."),
        (["train", "clip", "--corpus", "pairs"], "give it as --data pairs."),
        (["compare", "clip", "siglip --bach-size 3", "--data", "pairs"], "did you mean --batch-size?"),
        (["compare", "clip", "siglip", "--data", "pairs", "--seeds", "two"], "--seeds is a whole number, not 'two'."),
        (["list", "clip"], "polymodal list takes no 'clip'; `polymodal list --help` explains it."),
        (["evaluate", "runs/mien"], "did you mean runs/mine?"),
        (["search", "colection", "a red fruit"], "did you mean collection?"),
        (["export", "runs/mine", "--to", "transformers"], "`polymodal export --help` explains it."),
        (["curate", "wasm", "page", "--out", "curated"], "There is no file or folder page; did you mean pages?"),
    ],
)
def test_a_typo_ends_in_one_sentence(polymodal, place, words, expected):
    done = polymodal(*words, cwd=place)
    assert done.returncode == 2
    assert len(sentences := [line for line in done.stderr.splitlines() if line.startswith("polymodal: ")]) == 1
    assert expected in sentences[0]
    assert "─" not in done.stderr


def test_help_and_the_width_of_the_terminal_stay(polymodal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    done = polymodal("train", "clip", "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 60
    polymodal(*CLIP, "--buget", "1")
    assert os.environ["COLUMNS"] == "60"


def test_the_path_of_the_user_goes_before_the_corpus_of_its_name(polymodal, place):
    done = polymodal("curate", "wasm", "pages", "--out", "curated", cwd=place)
    assert "'pages' is the file or folder here, and not the built-in corpus of this name." in done.stderr
    assert "Chromium" not in done.stderr + done.stdout


def test_documents_of_the_user_go_before_the_corpus_of_their_name(polymodal, place):
    (place / "manuals").mkdir(exist_ok=True)
    done = polymodal("curate", "realsyn", "manuals", "--encoder", "nowhere", cwd=place)
    assert done.returncode == 2
    assert "'manuals' is the file or folder here, and not the built-in corpus of this name." in done.stderr


def test_the_nearest_path_is_beside_one_that_does_not_exist(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / ".photo").mkdir()
    assert nearest_path(tmp_path / "photo") == tmp_path / "photos"
    assert nearest_path(tmp_path / "photos") is None
    assert nearest_path(tmp_path / "sounds") is None
    assert nearest_path(tmp_path / "nowhere" / "photo") is None
