"""What `evaluate` keeps in the folder of a run, who shows it, and the line about best weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import polymodal as pm
from polymodal.cli import main
from polymodal.cli._printing import say_which_weights
from polymodal.corpora import Corpus
from polymodal.evaluation import Score
from polymodal.evaluation.kept_scores import EVALUATED, keep_scores, scores_kept_in
from polymodal.recipes.dual_encoders import clip
from polymodal.serving.page.header import headline

TASK = "test/text_to_image"


def score(metric: str, value: float, headline: int | None = None) -> Score:
    return Score(f"{TASK}/{metric}", np.full(20, value), 0.1, headline=headline)


def test_scores_of_the_same_name_are_replaced_and_others_stay(tmp_path: Path) -> None:
    keep_scores(tmp_path, [score("R@10", 0.5, 0), score("MRR", 0.25)])
    keep_scores(tmp_path, [score("R@10", 0.75, 0)])
    assert {one.name: one.value for one in scores_kept_in(tmp_path)} == {f"{TASK}/R@10": 0.75, f"{TASK}/MRR": 0.25}
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATED]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": 3}]', "null"])
def test_a_damaged_file_is_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / EVALUATED).write_text(text)
    assert scores_kept_in(tmp_path) == []
    keep_scores(tmp_path, [score("R@10", 0.75, 0)])
    assert len(scores_kept_in(tmp_path)) == 1
    keep_scores(tmp_path / "missing", [score("R@10", 0.75, 0)])  # is no error of `evaluate`


@pytest.fixture(scope="module")
def folder(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mine"
    data = pm.corpora.open_data(str(synthetic_folder / "corpus"))
    pm.train(clip.Recipe.tiny(), data, "3steps", out=path, progress=False)
    return path


def test_evaluate_keeps_what_the_page_shows(
    folder: Path, synthetic_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["polymodal", "evaluate", str(folder), *flags])
        main()
        return capsys.readouterr().out

    assert headline(pm.load_run(folder)) == "not evaluated"
    evaluate("--data", str(synthetic_folder / "corpus"))
    assert not (folder / EVALUATED).exists(), "scores on other data are not the run's"
    printed = {one["name"]: one["value"] for one in json.loads(evaluate("--json"))}
    kept = {one.name: one.value for one in scores_kept_in(folder)}
    assert kept == pytest.approx(printed, abs=1e-5)
    assert headline(pm.load_run(folder)).startswith(f"{TASK}/R@10 ")


def best_of(**kept: Any) -> Any:
    record = {"keep": "best", "steps": 8, "kept": {"step": 4, "metric": "validation/x"} | kept}
    return SimpleNamespace(name="mine", record=record)


def test_best_weights_are_named_where_they_are_not_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    say_which_weights(best_of())
    assert capsys.readouterr().err == (
        "The weights of mine are those of step 4, the best on validation (validation/x), not the last, of step 8.\n"
    )
    say_which_weights(best_of(step=8))
    say_which_weights(SimpleNamespace(name="mine", record={"steps": 8}))
    say_which_weights(SimpleNamespace(name="mine", record={"keep": "best", "kept": 3, "steps": 8}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [["evaluate"], ["search", "a red disk", "--out", "sheet.png"]])
def test_commands_name_best_weights(
    command: list[str],
    folder: Path,
    tmp_path: Path,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "mine")
    record = json.loads(Path("mine/run.json").read_text())
    record |= {"keep": "best", "kept": {"step": 2, "metric": "validation/x"}}
    Path("mine/run.json").write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["polymodal", command[0], "mine", *command[1:]])
    main()
    assert "are those of step 2, the best on validation" in capsys.readouterr().err
