"""`polymodal tune`: rungs that continue one training, who goes on, what stays within the budget, stops and errors."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import polymodal as pm
from polymodal import recipes
from polymodal.cli import main
from polymodal.cli._grid import parsed_grid, varied_values
from polymodal.corpora import Corpus
from polymodal.errors import UserError
from polymodal.evaluation import Score
from polymodal.hyper_parameters import leaves
from polymodal.recipes.dual_encoders import clip
from polymodal.reproduce import halving
from polymodal.reproduce.halving import successive_halving
from polymodal.reproduce.halving_display import HalvingDisplay
from polymodal.reproduce.halving_plan import (
    candidates_of,
    rung_sizes,
    rung_steps,
    whole_trainings,
    with_steps,
)
from polymodal.reproduce.halving_ranking import affordable
from polymodal.reproduce.halving_result import Tuning
from polymodal.reproduce.tuning import with_value
from polymodal.reproduce.varying import one_at_a_time
from polymodal.training import Interrupted, Paused, RuntimeConfig
from polymodal.training.nonfinite import NonFiniteTraining
from polymodal.types import Budget

TINY = clip.Recipe.tiny()
RATES = {"optimizer.learning_rate": [1e-4, 3e-3, 1e-2]}
QUIET = RuntimeConfig(logger="none")
NOISE = np.random.default_rng(0).normal(0, 0.05, 40)
NOISE -= NOISE.mean()


def quality_of_scale(method: Any, processor: Any) -> dict[str, Score]:
    """A score that depends on the logit scale alone, in place of one of the validation split."""
    scale = float(method.logit_scale().detach())
    return {"validation/x/score": Score("validation/x/score", scale / 100 + NOISE, headline=0)}


def scales(*values: float) -> dict[str, list[float]]:
    return {"logit_scale_init": list(values)}


def tuned(out: Path, corpus: Corpus, steps: int = 40, grid: Any = None, recipe: Any = TINY, **given: Any) -> Tuning:
    budget = Budget(steps=steps)
    return successive_halving(recipe, corpus, budget, grid or RATES, out=out, runtime=QUIET, **given)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of training: the logit scale that a recipe begins with is judged, at once."""

    def train(recipe: Any, corpus: Corpus, budget: Budget, **given: Any) -> Any:
        given["out"].mkdir(parents=True, exist_ok=True)
        given["on_step"](None, 0.0, {})
        method = SimpleNamespace(logit_scale=lambda: torch.tensor(float(recipe.logit_scale_init)))
        given["validate"](method, None)
        if given["until_step"] is not None:
            raise Paused("Stopped.")
        return SimpleNamespace(model=method, processor=None)

    monkeypatch.setattr(halving, "train", train)


class Quiet(HalvingDisplay):
    """Takes steps without progress."""

    def on_step(self, title: str, begin: int, end: int) -> Any:
        return lambda *_: None


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return tuned(tmp_path_factory.mktemp("tuning") / "out", corpus)


def without_times(record: Any) -> Any:
    """A record without seconds, which differ from run to run."""
    if isinstance(record, dict):
        return {name: without_times(value) for name, value in record.items() if name != "seconds"}
    return [without_times(value) for value in record] if isinstance(record, list) else record


# The plan


def test_rungs_get_shorter_by_eta_and_stay_within_the_budget() -> None:
    assert rung_sizes(8, 2) == [8, 4, 2]
    assert rung_sizes(9, 3) == [9, 3]
    assert rung_sizes(3, 2) == [3, 2]
    assert rung_sizes(2, 2) == [2]
    assert rung_steps(100, 3, 2) == (25, 50, 100)
    for count, eta, budget in itertools.product(range(2, 30), (2, 3, 4), (500, 777, 10_000)):
        sizes = rung_sizes(count, eta)
        ends = rung_steps(int(budget / whole_trainings(sizes, eta)), len(sizes), eta)
        begins = (0, *ends)
        cost = sum(size * (end - begin) for size, begin, end in zip(sizes, begins, ends, strict=False))
        assert 0.8 * budget < cost <= budget
        assert sizes[-1] <= eta


def test_examples_and_seconds_become_steps(corpus: Corpus, tmp_path: Path) -> None:
    candidates = candidates_of(TINY, {"batch_size": [2, 4]})
    begin = {"init": None, "trust_code": False}
    some = with_steps(candidates, corpus, Budget(examples=80), 2, 0, tmp_path, begin)
    assert [one.steps for one in some] == [(20,), (10,)]
    timed = with_steps(candidates, corpus, Budget(seconds=2.0), 2, 0, tmp_path, begin)
    assert all(one.steps[-1] >= 3 for one in timed)
    again = with_steps(candidates, corpus, Budget(seconds=2.0), 2, 0, tmp_path, begin)
    assert again == timed  # not measured anew
    with pytest.raises(UserError, match="not in flops"):
        with_steps(candidates, corpus, Budget(flops=1e9), 2, 0, tmp_path, begin)


@pytest.mark.parametrize("name", [name for name in dir(recipes) if hasattr(recipes.find(name), "build")])
def test_every_recipe_declares_a_grid_that_fits_it(name: str) -> None:
    recipe = recipes.find(name)()
    grid = recipe.tuning_grid()
    assert next(iter(grid)) == "optimizer.learning_rate"
    assert recipe.optimizer.learning_rate in grid["optimizer.learning_rate"]
    assert 4 <= len(candidates_of(recipe, grid)) <= 9


def after_the_first_rung(seconds: float, *steps: int, budget: str = "30s") -> dict[str, Any]:
    """A record whose candidates took so many seconds for a quarter of a schedule of so many steps."""
    held = [{"whole_steps": whole, "rungs": [{"step": whole // 4, "seconds": seconds}]} for whole in steps]
    return {"eta": 2, "budget": budget, "candidates": held}


@pytest.mark.parametrize(("seconds", "fitting"), [(2.0, 3), (2.4, 2), (9.0, 1)])
def test_fewer_go_on_where_time_would_run_out(seconds: float, fitting: int) -> None:
    """Six candidates at step 10 of 10, 20 and 40 took so many seconds: 3 and 2 more cost 70 steps, 2 and 2 60."""
    # Of 30 s, 6 x seconds are used, and 70 or 60 or 30 steps cost seconds / 10 each.
    expected = next((n for n, steps in ((3, 70), (2, 60)) if 6 * seconds + steps * seconds / 10 <= 30), 1)
    assert affordable(after_the_first_rung(seconds, *[40] * 6), [6, 3, 2], 0, 3) == expected == fitting
    assert affordable(after_the_first_rung(seconds, *[40] * 6, budget="30steps"), [6, 3, 2], 0, 3) == 3


def test_short_steps_of_small_batches_do_not_cost_more_candidates() -> None:
    """Batches of half the size have twice the steps in the same time: 4 x 4 s are used, 2 candidates cost 24 s more."""
    assert affordable(after_the_first_rung(4.0, 40, 80, 40, 80, budget="41s"), [4, 2], 0, 2) == 2
    assert affordable(after_the_first_rung(4.0, 40, 80, 40, 80, budget="31s"), [4, 2], 0, 2) == 1


# Training


def test_rungs_continue_one_training_under_the_whole_schedule(finished: Tuning, corpus: Corpus) -> None:
    record = finished.record
    assert [rung["candidates"] for rung in record["rungs"]] == [3, 2]
    assert record["steps"] <= 40
    best = record["best"]
    alone = pm.train(with_value(TINY, "learning_rate", best["values"]["optimizer.learning_rate"]), corpus,
                     f"{best['steps']}steps", progress=False)  # fmt: skip
    held = finished.run.model.state_dict()
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(held[name], tensor, rtol=1e-5, atol=1e-6)
    steps = [entry["step"] for entry in finished.run.history if "validation" in entry]
    assert steps == [rung["steps"] for rung in record["rungs"]]


def test_the_best_run_is_an_ordinary_one(finished: Tuning, corpus: Corpus) -> None:
    run = pm.load_run(finished.folder)
    assert run.record["state"] == "finished"
    assert pm.evaluate(run, corpus)
    dropped = next(one for one in finished.record["candidates"] if one["result"].startswith("out"))
    folder = finished.directory / dropped["folder"]
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    assert list(folder.glob("checkpoint-*"))


def test_an_interrupted_tuning_ends_as_the_uninterrupted_one(finished: Tuning, corpus: Corpus, tmp_path: Path) -> None:
    stops = iter([3, 14, 20])

    class Stopping(HalvingDisplay):
        steps, at = 0, next(stops)

        def on_step(self, title: str, begin: int, end: int) -> Any:
            def show(*_: Any) -> None:
                Stopping.steps += 1
                if Stopping.steps == Stopping.at:
                    os.kill(os.getpid(), signal.SIGTERM)

            return show

    for _ in range(3):
        with pytest.raises(Interrupted, match="the same command goes on"):
            tuned(tmp_path / "out", corpus, display=Stopping())
        Stopping.at = next(stops, 0)
    again = tuned(tmp_path / "out", corpus)
    assert without_times(again.record) == without_times(finished.record)
    held = finished.run.model.state_dict()
    for name, tensor in again.run.model.state_dict().items():
        torch.testing.assert_close(held[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_rung_whose_scores_were_lost_is_judged_again_without_training(
    finished: Tuning, corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(finished.directory, tmp_path / "out")
    for path in (tmp_path / "out" / "scores").glob("*-2.json"):
        path.unlink()
    record = json.loads((tmp_path / "out" / "tuning.json").read_text())
    (tmp_path / "out" / "tuning.json").write_text(json.dumps(record | {"state": "running"}))
    assert without_times(tuned(tmp_path / "out", corpus).record) == without_times(finished.record)


def test_the_test_split_is_never_read(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()
    for name in ("value", "raw", "raw_values", "__getitem__"):
        real = getattr(Corpus, name)

        def recorded(self: Corpus, rows: Any, *arguments: Any, real: Any = real, **named: Any) -> Any:
            read.update(int(row) for row in np.atleast_1d(rows))
            return real(self, rows, *arguments, **named)

        monkeypatch.setattr(Corpus, name, recorded)
    tuned(tmp_path / "with", corpus, 10)
    assert read & {*map(int, corpus.rows("validation"))}
    assert read & {*map(int, corpus.rows("train"))}
    assert not read & {*map(int, corpus.rows("test"))}


@pytest.mark.slow
def test_without_the_test_split_the_result_is_the_same(finished: Tuning, corpus: Corpus, tmp_path: Path) -> None:
    splits = {name: rows for name, rows in corpus.splits.items() if name != "test"}
    without = tuned(tmp_path / "without", corpus.with_splits(splits))
    assert without_times(finished.record) == without_times(without.record)


# Who goes on


@pytest.mark.usefixtures("untrained")
def test_the_better_half_goes_on_and_the_best_wins(corpus: Corpus, tmp_path: Path) -> None:
    grid = scales(20, 60, 40, 10, 50, 30)
    found = tuned(tmp_path / "out", corpus, 60, grid, validate=quality_of_scale, display=Quiet())
    by_value = {one["values"]["logit_scale_init"]: one for one in found.record["candidates"]}
    assert {value: len(one["rungs"]) for value, one in by_value.items()} == {10: 1, 20: 1, 30: 1, 40: 2, 50: 3, 60: 3}
    assert found.best == {"logit_scale_init": 60}
    assert found.record["tied_with_best"] == []
    assert {value: one["result"] for value, one in by_value.items()} == {
        10: "out", 20: "out", 30: "out", 40: "out", 50: "worse", 60: "best"
    }  # fmt: skip
    assert [row[0] for row in found.rows] == ["2", "5", "3", "6", "1", "4"]
    assert found.rows[0][3].startswith("60")


@pytest.mark.usefixtures("untrained")
def test_lower_is_better_where_the_metric_says_so(corpus: Corpus, tmp_path: Path) -> None:
    def loss(method: Any, processor: Any) -> dict[str, Score]:
        (score,) = quality_of_scale(method, processor).values()
        return {score.name: Score(score.name, score.clusters, higher_is_better=False, unit="distance", headline=0)}

    found = tuned(tmp_path / "out", corpus, 30, scales(20, 60, 40), validate=loss, display=Quiet())
    assert found.best == {"logit_scale_init": 20}
    assert [row[0] for row in found.rows] == ["1", "3", "2"]


@pytest.mark.usefixtures("untrained")
def test_a_difference_within_the_noise_is_called_a_tie(corpus: Corpus, tmp_path: Path) -> None:
    other = np.random.default_rng(1).normal(0, 0.05, 40)

    def noisy(method: Any, processor: Any) -> dict[str, Score]:
        scale = float(method.logit_scale().detach())
        units = 0.5 + (NOISE + 1e-3 if scale > 45 else other - other.mean())
        return {"validation/x": Score("validation/x", units - 0.3 * (scale < 15), headline=0)}

    found = tuned(tmp_path / "out", corpus, 60, scales(40, 50, 41, 10), validate=noisy, display=Quiet())
    results = {one["values"]["logit_scale_init"]: one["result"] for one in found.record["candidates"]}
    assert results == {50: "best", 40: "ties", 41: "out, tied", 10: "out"}
    assert "It ties with logit-scale-init 40 (#1)" in found.verdict
    assert "1 candidate was dropped in a tie" in found.verdict
    assert "another seed may choose otherwise" in found.verdict


class Diverging(HalvingDisplay):
    """Makes candidates fail whose line names one of these values."""

    def __init__(self, *values: str, error: Exception = NonFiniteTraining("The loss is nan.")):  # noqa: B008
        super().__init__()
        self.values = values
        self.error = error

    def on_step(self, title: str, begin: int, end: int) -> Any:
        def show(*_: Any) -> None:
            if title.endswith(self.values):
                raise self.error

        return show


@pytest.mark.usefixtures("untrained")
def test_a_candidate_that_diverges_is_the_worst(corpus: Corpus, tmp_path: Path) -> None:
    grid = scales(60, 40, 20)
    found = tuned(tmp_path / "out", corpus, 30, grid, validate=quality_of_scale, display=Diverging("60"))
    assert found.best == {"logit_scale_init": 40}
    worst = found.record["candidates"][0]
    assert (worst["result"], worst["rungs"][0]["reason"]) == ("diverged", "The loss is nan.")
    with pytest.raises(UserError, match="All candidates diverged"):
        tuned(tmp_path / "all", corpus, 30, scales(60, 40), display=Diverging("60", "40"))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_a_candidate_that_does_not_fit_into_the_memory_is_not_called_diverged(
    kind: type[Exception], corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = scales(60, 40, 20)
    full = Diverging("60", error=kind("Tried to allocate 2 GiB.\nMore."))
    found = tuned(tmp_path / "out", corpus, 30, grid, validate=quality_of_scale, display=full)
    assert found.record["candidates"][0]["result"] == "out of memory"
    assert found.record["candidates"][0]["rungs"][0]["reason"] == "Tried to allocate 2 GiB."
    said = capsys.readouterr().err
    assert "logit-scale-init 60: out of memory" in said
    assert "diverged" not in said
    full = Diverging("60", "40", error=torch.OutOfMemoryError("Tried to allocate 2 GiB."))
    with pytest.raises(UserError, match="No candidate fits into the memory"):
        tuned(tmp_path / "all", corpus, 30, scales(60, 40), display=full)


# Errors


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"grid": {"depth": [1, 2]}}, "'depth', which is no hyper-parameter"),
        ({"grid": {"batch_size.x": [1, 2]}}, "no hyper-parameter"),
        ({"grid": {"batch_size": [0, 2]}}, "--batch-size is at least 2"),
        ({"grid": {"batch_size": ["a", 2]}}, "takes a whole number"),
        ({"grid": {"batch_size": [2]}}, "nothing to compare"),
        ({"grid": {"batch_size": []}}, "no list of values"),
        ({"grid": {"batch_size": "24"}}, "no list of values"),
        ({"grid": {"batch_size": [2, 2]}}, "more than once"),
        ({"grid": {"batch_size": list(range(2, 400))}}, "at most 256"),
        ({"steps": 2}, "The budget is too small"),
        ({"eta": 1}, "--eta is at least 2"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(given: Any, match: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        tuned(tmp_path / "out", corpus, **given)
    assert not (tmp_path / "out").exists()


def test_data_without_a_validation_split_or_metric(corpus: Corpus, tmp_path: Path) -> None:
    splits = {name: rows for name, rows in corpus.splits.items() if name != "validation"}
    with pytest.raises(UserError, match="validation split"):
        tuned(tmp_path / "out", corpus.with_splits(splits))
    with pytest.raises(UserError, match="gives no metric"):
        tuned(tmp_path / "other", corpus, validate=lambda *_: {})


def test_a_folder_goes_on_with_its_own_tuning_alone(
    finished: Tuning, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tuned(finished.directory, corpus)
    assert again.finished_before
    assert again.record == finished.record
    with pytest.raises(UserError, match="another budget"):
        tuned(finished.directory, corpus, 50)
    monkeypatch.setattr(halving, "data_fingerprint", lambda corpus: "other")
    with pytest.raises(UserError, match="another state of the data"):
        tuned(finished.directory, corpus)
    monkeypatch.undo()
    with pytest.raises(UserError, match="another seed, grid"):
        tuned(finished.directory, corpus, seed=1, grid={"optimizer.learning_rate": [1.0, 2.0]})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        tuned(tmp_path, corpus)
    (tmp_path / "tuning.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        tuned(tmp_path, corpus)


# Command line and Python


def test_grids_are_read_as_the_types_of_their_fields() -> None:
    texts = ["learning-rate=1e-4,3e-4", "image.depth=1,2", "--optimizer.lr-scheduler=cosine, wsd", "freeze-x=1"]
    assert parsed_grid(texts[:3], TINY) == {
        "optimizer.learning_rate": [1e-4, 3e-4],
        "image.depth": [1, 2],
        "optimizer.lr_scheduler": ["cosine", "wsd"],
    }
    assert parsed_grid([], TINY) is None


def test_a_choice_is_varied_over_all_of_its_values_and_one_hyper_parameter_changes_at_a_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    axes = varied_values(["lr-scheduler", "image.depth=1,3"], TINY)
    assert "cosine" in axes["optimizer.lr_scheduler"]
    variants = one_at_a_time(TINY, {**axes, "optimizer.learning_rate": [-1.0]}, "tiny")
    others = [name for name in axes["optimizer.lr_scheduler"] if name != TINY.optimizer.lr_scheduler]
    depths = [depth for depth in (1, 3) if depth != TINY.image.depth]
    schedulers = [f"optimizer.lr_scheduler={name}" for name in others]
    assert [*variants] == ["tiny", *schedulers, *(f"image.depth={depth}" for depth in depths)]
    assert "optimizer.learning_rate=-1.0 is left out: " in capsys.readouterr().err
    for label, recipe in variants.items():
        both = zip(leaves(TINY), leaves(recipe), strict=True)
        changed = [n for (n, old, f), (_, new, _) in both if getattr(old, f.name) != getattr(new, f.name)]
        assert changed == ([] if label == "tiny" else [label.partition("=")[0]])
    with pytest.raises(UserError, match="No other value"):
        one_at_a_time(TINY, {"image.depth": [TINY.image.depth]})
    with pytest.raises(UserError, match="is no choice; write its values"):
        varied_values(["image.depth"], TINY)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("learning-rate", "takes NAME=VALUE,VALUE"),
        ("learning-rat=1", "did you mean optimizer.learning-rate"),
        ("zzz=1", "polymodal show"),
        ("learning-rate=1e-3,", "is a number, not ''"),
        ("image.depth=1.5", "is a whole number"),
        ("lr-scheduler=cos", "is one of cosine"),
        ("word-dropout=2", "--word-dropout is from 0 to 1"),
        ("freeze=text", "no single value"),
    ],
)
def test_typos_in_a_grid_are_one_sentence(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        parsed_grid([text], TINY)


FLAGS = ["--image.patch-size", "16", "--image.width", "16", "--image.depth", "1", "--text.width", "16"]
FLAGS += ["--text.depth", "1", "--embed-dim", "16", "--batch-size", "8", "--logger", "none"]


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["polymodal", *words])
    main()


def test_the_command_prints_what_fits_and_a_command_that_trains_the_best(
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(synthetic_folder / "corpus")]
    grid = ["--grid", "learning-rate=1e-3,1e-2", "--grid=word-dropout=0,0.5"]
    words = ["tune", "clip", *data, *FLAGS, *grid, "--budget", "20steps", "--out", "out"]
    run_command(monkeypatch, *words)
    said = capsys.readouterr()
    assert "4 candidates (2 of learning-rate x 2 of word-dropout)" in said.err
    assert "At most 18 steps of training, within the budget of 20steps" in " ".join(said.err.split())
    table, _, after = said.out.partition("\nBest by ")
    assert max(map(len, table.splitlines())) <= 60
    assert "result" in table
    assert max(len(line) for line in said.err.splitlines()) <= 60
    command = next(line for line in after.splitlines() if line.startswith("The best run again: "))
    retrain = shlex.split(command.partition(": polymodal ")[2])
    assert retrain[:2] == ["train", "clip"]
    assert not {"--grid", "--out", "--eta"} & {*retrain}
    run_command(monkeypatch, *retrain, "--out", "again")
    alone, best = pm.load_run("again").model.state_dict(), Tuning.read("out").run.model.state_dict()
    for name, tensor in alone.items():
        torch.testing.assert_close(best[name], tensor, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    run_command(monkeypatch, *words)
    table, _, _ = capsys.readouterr().out.partition("\nBest by ")
    said_before, _, table = table.partition("\n")
    assert "was finished before" in said_before
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("flags", [["--grid", "learning-rat=1"], ["--budget", "1step"], ["--eta", "1"]])
def test_errors_of_the_command_have_status_2(
    flags: list[str],
    synthetic_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "tune", "clip", "--data", str(synthetic_folder / "corpus"), *flags)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_in_python_the_result_shows_itself(corpus: Corpus, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = pm.tune(TINY, corpus, "12steps", grid={"learning_rate": (1e-3, 1e-2)}, out=tmp_path / "out", progress=False)
    assert capfd.readouterr().err == ""
    assert repr(found).startswith("clip, 2 candidates, tuned, best run in")
    assert "<table>" in found._repr_html_()
    frame = found.to_frame()
    assert list(frame["learning_rate"]) == [1e-3, 1e-2]
    assert list(frame["step"]) == [6, 6]
    assert found.best["learning_rate"] == found.run.recipe.optimizer.learning_rate
    with pytest.raises(UserError, match="lists of values by name"):
        pm.tune(TINY, corpus, "12steps", grid=[1])  # type: ignore[arg-type]


def test_tuning_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        pm.tune(TINY, pm.corpora.emoji(), "8steps", progress=False)
