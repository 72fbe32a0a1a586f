"""Comparisons: paired, resumable, written out; and verdicts."""

import json
import os
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import polymodal as pm
from polymodal import recipes
from polymodal.claim import STATISTICS, Claim, verdict_of
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.statistics import Estimate, Score
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.reproduce import Arm, compare, reproduce
from polymodal.reproduce.claim import claim_of, claim_record
from polymodal.reproduce.compare import Start, kept_scores
from polymodal.reproduce.curves import learning_curves, plot_curves, speed_up_factor, speed_up_factors
from polymodal.reproduce.display import Display, ProgressReporter
from polymodal.reproduce.leaderboard import rows, terminal_table
from polymodal.reproduce.page import recipe_page
from polymodal.reproduce.parallel import Job, run_in_parallel
from polymodal.reproduce.report import _curves
from polymodal.reproduce.verdict import Evidence, decide, verdict
from polymodal.training import load_run
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

ARMS = [Arm("clip", clip.Recipe(batch_size=32)), Arm("siglip", siglip.Recipe(batch_size=32))]


@pytest.fixture(scope="module")
def comparison(small_emoji, tmp_path_factory):
    return compare(ARMS, small_emoji, Budget(steps=8), seeds=2, out=tmp_path_factory.mktemp("comparison"))


def test_results_hold_every_figure_with_interval_budget_seed_cost_and_command(comparison):
    results = json.loads((comparison.directory / "results.json").read_text())
    assert results["budget"] == "8steps"
    assert results["seeds"] == [0, 1]
    assert results["command"]
    score = results["scores"]["test/text_to_image/R@10"]
    assert 0 < score["chance"] < 1
    for arm in score["arms"].values():
        assert arm["low"] <= arm["value"] <= arm["high"]
        assert arm["value"] == pytest.approx(sum(arm["by_seed"].values()) / 2)
    assert score["arms"]["clip"]["difference_to_first"]["value"] == 0
    assert results["arms"]["siglip"]["cost"]["parameters"] == results["arms"]["clip"]["cost"]["parameters"] + 1
    assert results["arms"]["clip"]["cost"]["flops_an_example"] > 1e6
    assert len(results["runs"]) == 4
    assert {"test/image_to_text/MRR", "test/zero_shot_category/accuracy", "test_twitter/text_to_image/R@1"} <= set(
        results["scores"]
    )
    assert "test/text_to_image_ja/R@10" in results["scores"]


def test_report_is_one_file_with_everything(comparison):
    page = (comparison.directory / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 3
    assert page.count('<img src="data:image/webp') >= 5 * 2 * 5
    for text in ("Leaderboard", "chance", "Learning curves", "By language", "By test split", "To run this again"):
        assert text in page


def test_arms_of_a_seed_start_from_the_same_weights_and_data(small_emoji):
    quick = compare(ARMS, small_emoji, Budget(steps=1), seeds=1)
    a, b = (trial.run.model.state_dict() for trial in quick.trials)
    near = (a["text_encoder.positions"] - b["text_encoder.positions"]).abs().max()
    assert near < 0.01  # one step apart at most, from the same start
    torch.manual_seed(0)
    other = clip.Recipe(batch_size=32).build(fit_processor(ARMS[0].recipe, small_emoji))
    torch.testing.assert_close(other.text_encoder.positions, a["text_encoder.positions"], atol=0.01, rtol=0)


def test_a_comparison_goes_on_where_it_stopped(comparison, small_emoji, monkeypatch):
    module = sys.modules[Start.__module__]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("scored again"))
    again = compare(ARMS, small_emoji, Budget(steps=8), seeds=2, out=comparison.directory)
    name = "test/text_to_image/MRR"
    assert again.estimate(ARMS[1], name) == pytest.approx(comparison.estimate(ARMS[1], name), abs=1e-6)
    with pytest.raises(UserError, match="another budget"):
        compare(ARMS, small_emoji, Budget(steps=9), seeds=2, out=comparison.directory)


def test_runs_side_by_side_are_those_of_one_after_the_other(comparison, small_emoji, tmp_path, monkeypatch):
    module = sys.modules[Start.__module__]
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("trained or scored in this process"))
    beside = compare(ARMS, small_emoji, Budget(steps=8), [1], tmp_path, jobs=2)
    alone = [trial for trial in comparison.trials if trial.seed == 1]
    for ours, theirs in zip(beside.trials, alone, strict=True):
        assert ours.arm == theirs.arm
        weights = theirs.run.model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in ours.run.model.state_dict().items())
        assert ours.scores.keys() == theirs.scores.keys()


def test_runs_side_by_side_begin_with_the_same_run(small_emoji, tmp_path):
    start = Start(siglip.Recipe(batch_size=32), Budget(steps=2))
    few = small_emoji.with_splits({"train": small_emoji.rows("train"), "test": small_emoji.rows("test")[:20]})
    beside = compare(ARMS, few, Budget(steps=1), [0], tmp_path / "beside", start=start, jobs=2)
    alone = compare(ARMS, few, Budget(steps=1), [0], tmp_path / "alone", start=start)
    for ours, theirs in zip(beside.trials, alone.trials, strict=True):
        assert torch.equal(ours.run.model.logit_scale(), theirs.run.model.logit_scale())
    assert (tmp_path / "beside" / "start" / "seed-0" / "run.json").is_file()


def test_what_makes_the_data_alone_gives_arms_no_weights(small_emoji):
    """Arms begin as without a start: neither its logit scale and bias, nor anything else is the start's."""
    few = small_emoji.with_splits({"train": small_emoji.rows("train")[:64], "test": small_emoji.rows("test")[:20]})
    arms = [Arm("siglip", siglip.Recipe(batch_size=32)), Arm("more", siglip.Recipe(batch_size=32, word_dropout=0.5))]
    fast = replace(arms[0].recipe, optimizer=OptimizerConfig(learning_rate=0.1, warmup_ratio=0.0))
    seen = []

    def makes(run, corpus, folder, seed):
        seen.append(run.model.logit_bias.item())
        return corpus

    start = Start(fast, Budget(steps=3), makes, weights=False)
    found = compare(arms, few, Budget(steps=1), [0], start=start)
    plain = compare(arms, few, Budget(steps=1), [0])
    for ours, theirs in zip(found.trials, plain.trials, strict=True):
        assert abs(ours.run.model.logit_bias.item() - seen[0]) > 0.05
        weights = theirs.run.model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in ours.run.model.state_dict().items())


def test_arms_are_scored_on_what_their_start_makes_where_it_has_the_tests(small_emoji):
    few = small_emoji.with_splits({"train": small_emoji.rows("train")[:64], "test": small_emoji.rows("test")[:20]})
    made = few.with_splits(dict(few.splits) | {"test": few.rows("test")[:10]})
    units = {}
    for tests in (False, True):
        start = Start(ARMS[0].recipe, Budget(steps=1), lambda *_: made, weights=False, tests=tests)
        found = compare(ARMS[:1], few, Budget(steps=1), [0], start=start)
        units[tests] = found.test_units("test/text_to_image/MRR")
    assert units == {False: 20, True: 10}


def test_the_scorer_of_a_filter_is_no_arms_beginning():
    claim = claim_of("webli_100b", "quality")
    assert claim.start_makes is not None
    assert not claim.start_weights
    assert not any("minus" in metric for metric in claim.deciding), "five of six frequent languages are not English"


def test_what_a_process_cannot_do_is_said_here(small_emoji, tmp_path):
    large = [Arm("a", clip.Recipe(batch_size=5000)), Arm("b", clip.Recipe(batch_size=5000))]
    with pytest.raises(UserError, match="less than one batch of 5000"):
        compare(large, small_emoji, Budget(steps=1), 1, tmp_path / "large", jobs=2)
    with pytest.raises(UserError, match="--jobs is at least 1"):
        compare(ARMS, small_emoji, Budget(steps=1), 1, tmp_path / "none", jobs=0)
    with pytest.raises(UserError, match="need a folder"):
        compare(ARMS, small_emoji, Budget(steps=1), 1, jobs=2)
    with pytest.raises(UserError, match="Only runs that train"):
        reproduce("set_level_attack", tmp_path / "attack", jobs=2)


def _leave(status: int, _: ProgressReporter) -> None:
    os._exit(status)


def test_a_process_that_ends_without_a_word_is_named(tmp_path):
    jobs = [Job("clip", seed, partial(_leave, 3)) for seed in range(2)]
    with pytest.raises(UserError, match=r"of clip, seed 0, ended without a word \(exit status 3\)"):
        run_in_parallel(jobs, 1, Display(["clip"], [0, 1], Budget(steps=1)))


def test_runs_of_a_comparison_can_be_opened(comparison):
    run = load_run(comparison.directory / "runs" / "siglip" / "seed-1")
    assert run.record["seed"] == 1
    assert [entry for entry in run.history if "validation" in entry]


def test_leaderboard_is_best_first(comparison):
    board = rows(comparison)
    assert board[0].leads
    assert board[0].estimates[0].value >= board[1].estimates[0].value
    assert {row.arm.label for row in board if row.difference is None} == {"clip"}
    assert len(terminal_table(comparison).rows) == 3


def test_two_arms_of_one_name_are_refused(small_emoji):
    with pytest.raises(UserError, match="different names"):
        compare([clip.Recipe(), clip.Recipe()], small_emoji, Budget(steps=1))


@pytest.mark.parametrize(
    ("interval", "higher", "expected"),
    [
        ((0.1, 0.01, 0.2), True, "supported"),
        ((0.1, -0.01, 0.2), True, "not supported at this scale"),
        ((-0.1, -0.2, -0.01), True, "contradicted"),
        ((-5.0, -9.0, -1.0), False, "supported"),
    ],
)
def test_verdicts(interval, higher, expected):
    assert verdict(Estimate(*interval), higher) == expected


def test_claim_record_names_verdict_and_metrics(comparison):
    claim = Claim("s", ARMS[0].recipe, ARMS[1].recipe, "emoji", Budget(steps=8), 2, ("test/text_to_image/MRR",))
    record = claim_record("siglip", claim, comparison)
    assert (record["verdict"], record["why"]) == ("no verdict", "2 seeds, and a verdict needs 3")
    assert record["difference"]["value"] == pytest.approx(record["treatment"]["value"] - record["baseline"]["value"])


def test_an_arm_without_a_score_is_left_out_of_its_line(comparison):
    claim = Claim("s", ARMS[0].recipe, ARMS[1].recipe, "emoji", Budget(steps=8), 2, ("test/text_to_image/MRR",))
    without = Arm("without", ARMS[0].recipe)
    first = [trial for trial in comparison.trials if trial.arm == comparison.arms[0]]
    trials = [*comparison.trials, *(replace(trial, arm=without, scores={}) for trial in first)]
    wider = replace(comparison, arms=[*comparison.arms, without], trials=trials)
    record = claim_record("siglip", claim, wider)
    assert list(record["metrics"]["test/text_to_image/MRR"]) == [arm.label for arm in comparison.arms]
    assert "without" in record["cost"]
    assert record["difference"] == claim_record("siglip", claim, comparison)["difference"]


def test_what_the_baseline_lacks_has_no_difference(comparison):
    own = [replace(trial, scores=dict(trial.scores)) for trial in comparison.trials]
    for trial in own:
        if trial.arm == comparison.arms[0]:
            del trial.scores["test/text_to_image/R@1"]
    partial = replace(comparison, trials=own)
    metrics = ("test/text_to_image/MRR", "test/text_to_image/R@1")
    claim = Claim("s", ARMS[0].recipe, ARMS[1].recipe, "emoji", Budget(steps=8), 2, metrics)
    (one,) = claim_record("siglip", claim, partial)["metrics"][metrics[1]].values()
    assert "difference" not in one
    assert not partial.can_be_compared(metrics[1])
    assert partial.can_be_compared(metrics[0])


def test_learning_curves_are_means_over_the_seeds(comparison):
    curves = learning_curves(comparison, ["test/text_to_image/MRR", "test/text_to_image/R@10"])
    assert curves["metric"] == "validation/text_to_image/MRR"
    of_clip = [
        [entry["validation"][curves["metric"]] for entry in trial.run.history if "validation" in entry]
        for trial in comparison.of(comparison.arms[0])
    ]
    drawn_for_clip = curves["arms"]["clip"]
    assert drawn_for_clip["steps"] == list(range(1, 9))
    assert drawn_for_clip["values"] == pytest.approx([sum(pair) / 2 for pair in zip(*of_clip, strict=True)], abs=1e-5)
    assert learning_curves(comparison, ["test/no such figure"])["metric"] == "validation/text_to_image/R@10"
    image = plot_curves(curves)
    assert image.startswith("<svg")
    assert ">siglip</text>" in image


def test_the_speed_up_factor_is_what_the_baseline_spent_over_what_reaches_its_loss():
    baseline = [(100.0, 3.0), (200.0, 2.5), (400.0, 2.0)]
    assert speed_up_factor(baseline, baseline) == 1
    assert speed_up_factor(baseline, [(100.0, 2.5), (200.0, 1.5), (400.0, 1.0)]) == pytest.approx(400 / 150)
    assert speed_up_factor(baseline, [(50.0, 2.0), (400.0, 1.0)]) == 8
    assert speed_up_factor(baseline, [(100.0, 3.0), (400.0, 2.1)]) is None


def test_speed_up_factors_are_of_losses_alone(comparison):
    def history(step_of_two: int) -> list[dict]:
        values = ((1, 3.0), (step_of_two, 2.0), (8, 2.0))
        return [{"step": step, "validation": {"validation/nll_per_token": value}} for step, value in values]

    score = replace(comparison.trials[0].scores["test/text_to_image/MRR"], higher_is_better=False)
    trials = [
        replace(t, run=replace(t.run, history=history(8 if t.arm == comparison.arms[0] else 4)))
        for t in comparison.trials
    ]
    trials = [replace(t, scores=t.scores | {"test/nll_per_token": score}) for t in trials]
    found = speed_up_factors(replace(comparison, trials=trials), ["test/text_to_image/MRR", "test/nll_per_token"])
    costs = [comparison.cost(arm)["flops_an_example"] for arm in comparison.arms]
    assert found == {"validation/nll_per_token": {"siglip": pytest.approx(2 * costs[0] / costs[1])}}


def test_a_figure_that_is_no_share_is_not_drawn_in_percent(comparison):
    looked = [
        {"step": step, "seconds": float(step), "losses": {"text": 1.0}, "validation": {"validation/nll_per_token": 2.5}}
        for step in (1, 2)
    ]
    kinds = {"validation/nll_per_token": {"unit": "nats per token", "higher_is_better": False, "headline": None}}
    trials = [
        replace(trial, run=replace(trial.run, history=looked, record=trial.run.record | {"metrics": kinds}))
        for trial in comparison.trials
    ]
    image = _curves(replace(comparison, trials=trials))
    assert "nats per token" in image
    assert ">%</text>" not in image
    assert ">250" not in image
    drawn = _curves(comparison)
    assert ">%</text>" in drawn
    assert "steps" in drawn
    assert "seconds" not in drawn, "a budget in seconds is one in steps by then"


def test_there_are_no_learning_curves_where_nobody_looked(comparison):
    unseen = replace(comparison, trials=[replace(t, run=replace(t.run, history=[])) for t in comparison.trials])
    assert learning_curves(unseen, []) is None


def test_recorded_claims_are_those_of_the_recipes():
    files = list((Path(pm.__file__).parent / "reproduce" / "results").glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())
        recipe, _, further = file.stem.partition("-")
        claim = claim_of(recipe, further or recipes.FIRST_CLAIM)
        assert len(record["seeds"]) >= 3
        if record.get("statistics") != STATISTICS:  # of an earlier claim, perhaps
            assert verdict_of(record) == "to be measured again"
            continue
        assert record["claim"] == claim.sentence
        assert record["budget"] == str(claim.budget)
        assert list(record["metrics"]) == list(claim.metrics)
        evidence = [Evidence.from_json(one) for one in record["deciding"]]
        assert tuple(one.metric for one in evidence) == claim.deciding_metrics
        assert record["verdict"] == decide(evidence, len(record["seeds"])).verdict
        assert record["committed"]["claim"]


@pytest.mark.parametrize("name", recipes.entries())
def test_pages_of_the_recipes_are_what_their_files_and_results_say(name: str) -> None:
    folder = Path(__file__).parents[1] / "docs" / "recipes"
    image = f"{name}.png" if (folder / f"{name}.png").is_file() else None
    assert (folder / f"{name}.md").read_text(encoding="utf-8") == recipe_page(name, image), "run `make pages`"


def test_a_comparison_that_goes_on_after_a_stop_has_the_same_scores(tmp_path):
    def scored():
        return [Score("test/MRR", np.array([1 / 3, 1 / 7]), weights=np.array([0.1, 0.2]))]

    first, again = kept_scores(tmp_path, scored), kept_scores(tmp_path, scored)
    assert first[0].value == again[0].value
    assert first[0].value == pytest.approx(scored()[0].value, abs=1e-6)
