"""Shared pieces of the tests: jaxtyping's shapes are checked at run time, and corpora are opened once a session."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
FOLDERS = ("data", "encoders", "evaluation", "layers", "modalities", "models", "objectives", "recipes")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int may stand for a float
install_import_hook([f"polymodal.{folder}" for folder in FOLDERS], CHECKER)

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora.saved import open_saved, save_corpus


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector, which every training calls, then has a third of the work."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _imported_later() -> Iterator[None]:
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What tests train with is remembered here, and not in the user's own state folder."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as now:
        now.setenv("POLYMODAL_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def emoji() -> Corpus:
    """The real corpus; fetched on first use."""
    return pm.corpora.emoji()


@pytest.fixture
def emoji_is_small(small_emoji: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run in this process open `small_emoji` by the name of the whole."""
    monkeypatch.setattr(sys.modules["polymodal.corpora.emoji"], "emoji", lambda: small_emoji)
    monkeypatch.setattr(pm.corpora, "emoji", lambda: small_emoji)


@pytest.fixture(scope="session")
def scenes() -> Corpus:
    return pm.corpora.scenes()


@pytest.fixture(scope="session")
def small_emoji(emoji: Corpus) -> Corpus:
    """A tenth of it, for tests that train."""
    rng = np.random.default_rng(0)
    return emoji.with_splits(
        {name: np.sort(rng.permutation(rows)[: len(rows) // 5]) for name, rows in emoji.splits.items()}
    )


def saved_part(corpus: Corpus, folder: Path, **rows: int) -> Path:
    """A folder that `--data` opens, with so many rows of every split."""
    about = dataclasses.replace(corpus.about, name=f"few_{corpus.name}")
    stored = (
        {"key": corpus.key(int(row)), "split": split} | {name: corpus.raw(int(row), name) for name in corpus.columns}
        for split, count in rows.items()
        for row in corpus.rows(split)[:count]
    )
    types = {field.name: field.type for field in corpus.table.schema if field.name in corpus.columns}
    save_corpus(folder, about, corpus.columns, stored, types=types, label=corpus.label)
    return folder


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `corpus` is the corpus of `synthetic`."""
    import synthetic

    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.corpus(folder / "corpus")
    return folder


@pytest.fixture(scope="session")
def corpus(synthetic_folder: Path) -> Corpus:
    """The corpus of `synthetic`, where a file has no `corpus` of its own."""

    return open_saved(synthetic_folder / "corpus")


@pytest.fixture(scope="session")
def few_emoji(small_emoji: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some rows of it, for commands that train a few steps."""
    return saved_part(small_emoji, tmp_path_factory.mktemp("few") / "emoji", train=160, validation=24, test=24)


@pytest.fixture(scope="session")
def few_scenes(scenes: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_part(scenes, tmp_path_factory.mktemp("few") / "scenes", train=48, validation=3, test=3)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP as the hub holds it: weights, tokenizer, image processor."""
    import transformers

    from tiny_checkpoints import IMAGE_MODELS, save, save_tokenizer

    folder = tmp_path_factory.mktemp("clip")
    save(transformers.CLIPModel(IMAGE_MODELS["clip"]()), folder)
    save_tokenizer(folder, ["a red fruit", "a smiling face with heart eyes", "flag of france"] * 20)
    said = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    from tiny_checkpoints import TEXT_MODELS, save, save_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    save(transformers.BertModel(TEXT_MODELS["bert"]()), folder)
    return save_tokenizer(folder, ["a red fruit", "a smiling face"] * 20)


@pytest.fixture
def polymodal_process(tmp_path: Path):
    """The command line as a user starts it, in a folder of its own; returns the finished process."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "polymodal", *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=os.environ | environment,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def polymodal(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Run the command line in a folder of its own; returns what a process would.

    It runs in this process, for importing everything takes longer than most commands; see `polymodal_process`.
    """
    from polymodal import cli

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.MonkeyPatch.context() as now:
            now.chdir(cwd)
            now.setattr(sys, "argv", ["polymodal", *arguments])
            for name, value in environment.items():
                now.setenv(name, value)
            try:
                cli.main()
                status: Any = 0
            except SystemExit as end:
                status = end.code
        said, warned = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, status or 0, said, warned)

    return run
