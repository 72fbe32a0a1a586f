"""Verdicts, what is written down before a claim is measured, its history, and tuning that is recorded."""

import dataclasses
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from polymodal import source
from polymodal.claim import Claim, verdict_of
from polymodal.errors import UserError
from polymodal.evaluation.seeds import aggregate_seeds, paired_difference
from polymodal.evaluation.statistics import Estimate, Score
from polymodal.recipes.dual_encoders import clip
from polymodal.reproduce import Arm, ComparisonResult, reproduce
from polymodal.reproduce.claim import claim_of, claim_record
from polymodal.reproduce.claim_text import (
    chance_of,
    claim_rows,
    decision_sentence,
    how_often,
    how_tuned,
    measured,
    secondary_sentence,
)
from polymodal.reproduce.commitment import _plain, claim_version, code_version, commit, history
from polymodal.reproduce.leaderboard import comparison_verdict, difference_note, rows, terminal_table
from polymodal.reproduce.result import Trial
from polymodal.reproduce.tuning import grid, with_value
from polymodal.reproduce.verdict import Evidence, corrected_p_values, decide, verdict
from polymodal.types import Budget

ABOVE, BELOW, OPEN = Estimate(0.1, 0.05, 0.15), Estimate(-0.1, -0.15, -0.05), Estimate(0.01, -0.02, 0.04)
AT_CHANCE, CLEAR = Estimate(0.5, 0.4, 0.6), Estimate(0.8, 0.7, 0.9)


def evidence(difference=ABOVE, treatment=CLEAR, baseline=CLEAR, **changes):
    plain = Evidence("m", True, 0.0, 0.5, 100, False, difference, difference, baseline, treatment)
    return replace(plain, **changes)


@pytest.mark.parametrize(("difference", "said"), [(ABOVE, "supported"), (BELOW, "contradicted")])
def test_a_whole_interval_on_one_side_is_a_verdict(difference, said):
    assert decide([evidence(difference)], 3).verdict == said


def test_what_is_not_found_is_said_with_the_largest_effect_that_is_left_open():
    decision = decide([evidence(OPEN)], 3)
    assert decision.verdict == "not supported at this scale"
    assert decision.left_open == {"m": 0.04}
    lower = decide([evidence(OPEN, higher_is_better=False, chance=None)], 3)
    assert lower.left_open == {"m": 0.02}


@pytest.mark.parametrize(
    ("changes", "seeds", "why"),
    [
        ({}, 2, "2 seeds, and a verdict needs 3"),
        ({}, 1, "1 seed, and a verdict needs 3"),
        ({"units": 1}, 5, "a single test unit"),
        ({"copy": True, "difference": Estimate(0, 0, 0)}, 5, "a copy of the baseline"),
        ({"difference": Estimate(0, 0, 0)}, 5, "equal on every test unit"),
        ({"difference": Estimate(math.nan, math.nan, math.nan)}, 5, "not a number"),
    ],
)
def test_there_is_no_verdict_without_seeds_units_or_numbers(changes, seeds, why):
    decision = decide([evidence(**changes)], seeds)
    assert decision.verdict == "no verdict"
    assert why in decision.why


def test_the_arm_that_is_the_better_one_clears_chance_or_there_is_no_verdict():
    """A baseline may be at chance by construction, as one is that cannot see what the treatment sees."""
    assert decide([evidence(ABOVE, CLEAR, AT_CHANCE)], 3).verdict == "supported"
    assert decide([evidence(ABOVE, AT_CHANCE, AT_CHANCE)], 3).why == "the treatment is not above chance by m"
    assert decide([evidence(BELOW, AT_CHANCE, CLEAR)], 3).verdict == "contradicted"
    assert decide([evidence(BELOW, AT_CHANCE, AT_CHANCE)], 3).why == "the baseline is not above chance by m"
    assert decide([evidence(OPEN, AT_CHANCE, AT_CHANCE)], 3).why == "neither arm is above chance by m"
    assert decide([evidence(OPEN, AT_CHANCE, CLEAR)], 3).verdict == "not supported at this scale"
    lower = {"higher_is_better": False, "difference": BELOW}
    assert decide([evidence(treatment=Estimate(0.2, 0.1, 0.3), **lower)], 3).verdict == "supported"
    assert decide([evidence(treatment=CLEAR, **lower)], 3).verdict == "no verdict"


def test_a_sentence_with_and_is_tested_as_a_conjunction():
    one, other = evidence(ABOVE), evidence(OPEN, metric="n")
    assert decide([one, one], 3).verdict == "supported"
    assert decide([one, other], 3).verdict == "not supported at this scale"
    assert decide([one, other], 3).left_open == {"n": 0.04}
    assert decide([one, evidence(BELOW, metric="n")], 3).verdict == "contradicted"
    narrow = evidence(BELOW, corrected=Estimate(-0.1, -0.21, 0.01), metric="n")
    assert decide([one, narrow], 3).verdict == "not supported at this scale", "each part has the occasion to be against"


def test_a_part_that_may_not_be_worse_has_a_margin():
    assert verdict(OPEN, margin=0.03) == "supported"
    assert verdict(OPEN, margin=0.01) == "not supported at this scale"
    assert verdict(BELOW, margin=0.03) == "contradicted"
    assert verdict(Estimate(-0.02, -0.03, -0.01), margin=0.05) == "supported"
    assert claim_of("wasm").margins == {"noise/dropped": 0.02}
    assert claim_of("wasm").deciding_metrics == ("good/kept", "noise/dropped")
    with pytest.raises(UserError, match="'b' is to decide a claim"):
        Claim("s", None, None, "emoji", Budget(steps=1), 3, ("a",), deciding=("b",))


RECIPE = clip.Recipe(batch_size=16)
LABELS = ("baseline", "treatment", "copy", "further")


def made_up(seeds=3, chance=0.5):
    """A comparison of scores that are made up: the treatment is better by `good` and `other`, and one arm is a copy."""
    rng = np.random.default_rng(0)
    arms = [Arm(label, RECIPE) for label in LABELS]
    better = {"baseline": 0.0, "treatment": 0.2, "copy": 0.0, "further": 0.0}
    trials = []
    for seed in range(seeds):
        easy = rng.normal(0, 0.1, 100)
        noise = {label: rng.normal(0, 0.05, 100) for label in LABELS} | {"copy": None}
        noise["copy"] = noise["baseline"]
        for arm in arms:
            scores = [
                Score("test/good", 0.6 + better[arm.label] + easy + noise[arm.label], chance, headline=0),
                Score("test/other", 0.3 + better[arm.label] + easy + noise[arm.label], 0.25),
                Score("test/free", easy + noise[arm.label][::-1]),
            ]
            trials.append(Trial(arm, seed, None, {score.name: score for score in scores}))
    return ComparisonResult(arms, None, Budget(steps=1), list(range(seeds)), trials)


CLAIM = Claim("s", RECIPE, RECIPE, "emoji", Budget(steps=1), 3, ("test/good", "test/other", "test/free"))


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.setattr("polymodal.reproduce.claim.learning_curves", lambda *_: None)
    cost = {"seconds": 1.0, "steps": 1.0}
    monkeypatch.setattr(ComparisonResult, "cost", lambda *_: cost)
    return made_up()


def test_results_keep_every_seed_every_chance_and_what_was_corrected(comparison):
    record = json.loads(json.dumps(claim_record("clip", CLAIM, comparison)))
    assert record["verdict"] == "supported"
    assert record["chances"] == {"test/good": 0.5, "test/other": 0.25, "test/free": None}
    for metric in CLAIM.metrics:
        for label in LABELS:
            one = record["metrics"][metric][label]
            assert list(one["by_seed"]) == ["0", "1", "2"]
            assert np.mean([*one["by_seed"].values()]) == pytest.approx(one["value"])
    assert "p_holm" not in record["metrics"]["test/good"]["treatment"], "it decides"
    assert record["metrics"]["test/other"]["treatment"]["p_holm"] < 0.05
    assert record["metrics"]["test/free"]["treatment"]["p_holm"] > 0.05
    again = [Evidence.from_json(one) for one in record["deciding"]]
    assert decide(again, 3).verdict == "supported"


def test_a_copy_of_the_baseline_differs_by_zero_and_is_said_to_be_one(comparison):
    record = claim_record("clip", CLAIM, comparison)
    for metric in CLAIM.metrics:
        assert record["metrics"][metric]["copy"]["copy_of_baseline"]
        assert record["metrics"][metric]["copy"]["difference"] == {"value": 0, "low": 0, "high": 0}
        assert not record["metrics"][metric]["further"]["copy_of_baseline"]
    assert "(copy of the baseline)" in measured(record, "test/good", "copy")
    assert difference_note(comparison, comparison.arms[2], "test/good") == "a copy"
    alone = replace(comparison, arms=comparison.arms[:2])
    assert alone.difference(alone.arms[1], "test/good") == comparison.difference(alone.arms[1], "test/good")


def test_two_arms_that_are_right_everywhere_by_one_metric_are_no_copies(comparison):
    for trial in comparison.trials:
        trial.scores["test/free"] = Score("test/free", np.ones(100), 0.5)
    claim = replace(CLAIM, deciding=("test/good", "test/free"), margins={"test/free": 0.02})
    record = claim_record("clip", claim, comparison)
    assert not record["metrics"]["test/free"]["treatment"]["copy_of_baseline"]
    assert record["metrics"]["test/free"]["copy"]["copy_of_baseline"]
    assert record["verdict"] == "supported", "no worse, and better by the other metric"
    assert claim_record("clip", replace(claim, margins={}), comparison)["verdict"] == "no verdict"


def test_an_interval_of_a_fraction_lies_between_0_and_1():
    values = [np.r_[np.ones(9), 0.0], np.r_[np.ones(8), 0.0, 0.0], np.ones(10)]
    plain = [Score("x", units) for units in values]
    fractions = [replace(score, is_fraction=True) for score in plain]
    assert aggregate_seeds(plain).high > 1
    assert aggregate_seeds(fractions).high == 1
    assert aggregate_seeds(fractions)[:2] == aggregate_seeds(plain)[:2]
    steep = Score.from_influence("x", 0.95, np.linspace(-9, 9, 10))
    assert steep.estimate().high > 1 >= replace(steep, is_fraction=True).estimate().high
    assert Score.from_json(fractions[0].to_json()).is_fraction
    assert paired_difference(fractions, fractions[::-1]).low < 0
    nothing = Score("x", np.array([]), weights=np.array([]))
    assert nothing.estimate() == (0, 0, 0), "of a test without a case, as of expressions without an object"


def test_secondary_metrics_are_corrected_and_said_to_be(comparison):
    corrected = corrected_p_values(comparison, CLAIM.metrics, CLAIM.deciding_metrics)
    assert set(corrected) == {
        ("test/other", "treatment"),
        ("test/free", "treatment"),
        *((metric, "further") for metric in CLAIM.metrics),
    }
    record = claim_record("clip", CLAIM, comparison)
    said = secondary_sentence(record)
    assert "not corrected for their number" in said
    assert "Holm's correction over 5 such comparisons these differ (*): test/other of treatment" in said
    assert measured(record, "test/other", "treatment").endswith("*")
    assert "*" not in measured(record, "test/free", "treatment")


def test_every_chance_is_shown(comparison):
    record = claim_record("clip", CLAIM, comparison)
    assert [chance_of(record, metric) for metric in CLAIM.metrics] == ["50.0 %", "25.0 %", "–"]
    assert [row[1] for row in claim_rows(record)] == ["50.0 %", "25.0 %", "–"]
    assert "(chance 50.0 %)" in decision_sentence(record)


def test_a_result_of_the_earlier_method_has_no_verdict(comparison):
    record = claim_record("clip", CLAIM, comparison)
    old = {
        name: value for name, value in record.items() if name not in ("statistics", "deciding", "chances", "left_open")
    }
    assert verdict_of(record) == "supported"
    assert verdict_of(old) == "to be measured again"
    assert "earlier method" in decision_sentence(old)
    assert "supported" not in decision_sentence(old)
    assert chance_of(old, "test/good") == "50.0 %"


def test_what_is_left_open_is_said(comparison):
    record = claim_record("clip", replace(CLAIM, metrics=("test/free",)), comparison)
    assert record["verdict"] == "not supported at this scale"
    shown = f"{100 * record['left_open']['test/free']:.1f} points by test/free is left open"
    assert shown in decision_sentence(record)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, "One seed: no ranking"), (2, "no verdict, since the interval of two seeds is wide"), (3, "clearly ahead")],
)
def test_a_comparison_says_what_its_seeds_are_worth(comparison, seeds, said):
    some = made_up(seeds)
    assert said in comparison_verdict(some)
    assert ("two seeds" in comparison_verdict(some)) == (seeds == 2)
    assert ("clearly ahead" in comparison_verdict(some)) == (seeds == 3), "a verdict needs three seeds"
    assert [row.arm.label for row in rows(some)][:1] == (["baseline"] if seeds == 1 else ["treatment"])
    assert any(row.leads for row in rows(some)) == (seeds > 1)
    assert len(terminal_table(some).rows) == 5


def test_the_best_of_arms_at_chance_is_not_ahead(comparison):
    assert "not above chance" in comparison_verdict(made_up(3, chance=0.95))


def test_compare_has_three_seeds_by_default():
    import inspect

    from polymodal.cli.comparing import CompareOptions
    from polymodal.reproduce import compare

    assert inspect.signature(compare).parameters["seeds"].default == CompareOptions().seeds == 3


PLANNED = {"claim": "a", "code": "b", "budget": "1steps", "seeds": 3, "tuned": False}
RESULT = {"verdict": "supported", "metric": "m", "difference": ABOVE._asdict(), "seeds": [0, 1, 2], "budget": "1steps"}


def finished(out, planned=PLANNED, previous=None, **changes):
    result = RESULT | {"committed": planned, "history": history(previous)} | changes
    (out / "claim.json").write_text(json.dumps(result))
    return result


def test_a_claim_is_written_down_before_and_measured_once_for_its_code(tmp_path):
    out = tmp_path / "out"
    assert commit(PLANNED, out, None, again=False) is None
    committed = json.loads((out / "committed.json").read_text())
    assert committed["claim"] == "a"
    assert committed["time"]
    assert commit(PLANNED, out, None, again=False) is None, "a run that was stopped goes on"
    assert json.loads((out / "committed.json").read_text()) == committed
    finished(out)
    with pytest.raises(UserError, match=r"measured with this code already: supported .*--again"):
        commit(PLANNED, out, None, again=False)
    first = commit(PLANNED, out, None, again=True)
    assert [one["verdict"] for one in history(first)] == ["supported"]
    assert (tmp_path / "out-1" / "claim.json").is_file()
    assert not (out / "claim.json").is_file()


def test_changed_code_is_measured_again_and_the_earlier_result_is_kept(tmp_path):
    out = tmp_path / "out"
    commit(PLANNED, out, None, again=False)
    first = finished(out)
    changed = PLANNED | {"code": "c"}
    previous = commit(changed, out, None, again=False)
    second = finished(out, changed, previous, verdict="contradicted")
    assert json.loads((out / "committed.json").read_text())["code"] == "c"
    third = history(commit(PLANNED | {"code": "d"}, out, None, again=False))
    assert [one["verdict"] for one in third] == ["supported", "contradicted"]
    assert history(first) != history(second)
    begun = tmp_path / "begun"
    commit(PLANNED, begun, None, again=False)
    (begun / "runs").mkdir()
    commit(changed, begun, None, again=False)
    assert not (begun / "runs").exists(), "runs of other code are not gone on with"


def test_a_repetition_that_is_stopped_and_goes_on_keeps_the_earlier_results(tmp_path):
    out = tmp_path / "out"
    commit(PLANNED, out, None, again=False)
    finished(out)
    changed = PLANNED | {"code": "c"}
    commit(changed, out, None, again=False)
    assert [one["verdict"] for one in history(commit(changed, out, None, again=False))] == ["supported"]


def test_what_the_package_has_measured_counts(tmp_path):
    known = tmp_path / "known.json"
    known.write_text(json.dumps(RESULT))  # of the earlier method: nothing was written down before it
    assert history(commit(PLANNED, tmp_path / "out", known, again=False))[0]["verdict"] == "supported"
    known.write_text(json.dumps(RESULT | {"committed": PLANNED}))
    with pytest.raises(UserError, match=r"known\.json"):
        commit(PLANNED, tmp_path / "other", known, again=False)


def test_how_often_a_claim_was_measured_is_said(comparison):
    record = claim_record("clip", CLAIM, comparison)
    assert how_often(record | {"history": []}) == ""
    said = how_often(
        record | {"history": [RESULT, RESULT | {"verdict": "contradicted", "statistics": 2, "committed": PLANNED}]}
    )
    assert said.startswith("Measured 3 times; before: supported (")
    assert "earlier method of intervals" in said
    assert "contradicted" in said
    assert "code b" in said


def test_a_claim_has_a_hash_of_all_that_it_says():
    claim = claim_of("mpo")
    assert claim_version(claim) == claim_version(claim_of("mpo"))
    for changes in (
        {"seeds": 7},
        {"budget": Budget(steps=3)},
        {"metrics": claim.metrics[1:]},
        {"tuning": {"learning_rate": (1e-3,)}},
        {"start_makes": None},
        {"treatment": replace(claim.treatment, batch_size=claim.treatment.batch_size + 1)},
    ):
        assert claim_version(replace(claim, **changes)) != claim_version(claim), changes


def test_code_has_a_hash_that_changes_with_what_it_imports(tmp_path, monkeypatch):
    modules = ["polymodal.recipes.dual_encoders.clip"]
    assert source.code_version(modules) == source.code_version(modules)
    assert source.code_version(modules) != source.code_version(["polymodal.recipes.dual_encoders.siglip"])
    texts = {"polymodal.a": "import os\nfrom polymodal import b", "polymodal.b": "x = 1", "polymodal.c": "y = 1"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)

    def place(module):
        return tmp_path / f"{module}.py" if module in texts else tmp_path / "empty" if module == "polymodal" else None

    (tmp_path / "empty").write_text("")
    monkeypatch.setattr(source, "_file", place)
    before = source.code_version(["polymodal.a"])
    (tmp_path / "polymodal.c.py").write_text("y = 2")
    assert source.code_version(["polymodal.a"]) == before, "it is not imported"
    (tmp_path / "polymodal.b.py").write_text("x = 2")
    assert source.code_version(["polymodal.a"]) != before, "it is imported"
    assert code_version(CLAIM)


def test_a_hyper_parameter_of_the_optimizer_is_found_by_its_own_name():
    @dataclasses.dataclass(frozen=True)
    class Optimizer:
        learning_rate: float = 1.0

    @dataclasses.dataclass(frozen=True)
    class Recipe:
        width: int = 1
        optimizer: Optimizer = Optimizer()

    assert with_value(Recipe(), "width", 3).width == 3
    for name in ("learning_rate", "optimizer.learning_rate"):
        assert with_value(Recipe(), name, 3.0).optimizer.learning_rate == 3.0
    with pytest.raises(UserError, match="'depth', which is no hyper-parameter"):
        with_value(Recipe(), "depth", 3)
    assert list(grid({"a": (1, 2), "b": (3,)})) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_a_claim_is_tuned_measured_and_refused_the_second_time(small_emoji, tmp_path, monkeypatch):
    metric = "test/text_to_image/MRR"
    rates = (1e-9, 1e-2)
    other = replace(RECIPE, word_dropout=0.3)
    claim = Claim("s", RECIPE, other, "emoji", Budget(steps=2), 1, (metric,), tuning={"learning_rate": rates})
    few = small_emoji.with_splits({name: rows[:24] for name, rows in small_emoji.splits.items()})
    module = sys.modules[claim_of.__module__]  # the package's attribute of this name is the function
    monkeypatch.setattr(module, "claim_of", lambda *_: claim)
    monkeypatch.setattr(module, "load_corpus", lambda _: few)
    result, comparison = reproduce("./mine.py", tmp_path / "out", tune=True)
    tuning = result["tuning"]
    assert tuning["metric"] == "validation/text_to_image/MRR"
    for label, tried in tuning["arms"].items():
        assert [one["values"]["learning_rate"] for one in tried] == list(rates)
        best = max(tried, key=lambda one: one["value"])["values"]
        assert tuning["best"][label] == best
        (arm,) = (arm for arm in comparison.arms if arm.label == label)
        assert with_value(arm.recipe, "learning_rate", best["learning_rate"]) == arm.recipe
    assert "All arms are tuned alike: the best of learning_rate 1e-09, 0.01" in how_tuned(result)
    assert how_tuned({}) == "No tuning of the arms is recorded."
    assert result["committed"]["claim"] == claim_version(claim)
    assert result["committed"]["tuned"]
    assert json.loads((tmp_path / "out" / "claim.json").read_text())["tuning"] == json.loads(json.dumps(tuning))
    with pytest.raises(UserError, match="--again"):
        reproduce("./mine.py", tmp_path / "out", tune=True)
    monkeypatch.setattr(module, "compare", lambda *_: comparison)
    again, _ = reproduce("./mine.py", tmp_path / "out", again=True)
    assert again["tuning"] is None
    assert [one["committed"]["tuned"] for one in again["history"]] == [True]
    assert how_often(again).startswith("Measured 2 times")


def test_arms_have_a_fraction_of_the_budget_and_further_ones_the_values_of_another(small_emoji, tmp_path, monkeypatch):
    other = replace(RECIPE, word_dropout=0.3)
    claim = Claim(
        "s",
        RECIPE,
        other,
        "emoji",
        Budget(steps=4),
        1,
        ("test/text_to_image/MRR",),
        further={"more": replace(RECIPE, word_dropout=0.5)},
        tuning={"learning_rate": (1e-9, 1e-2)},
        tuning_fraction=0.5,
        tuned_like={"more": "treatment"},
        budget_fractions={"baseline": 0.75},
    )
    few = small_emoji.with_splits({name: rows[:24] for name, rows in small_emoji.splits.items()})
    module = sys.modules[claim_of.__module__]
    monkeypatch.setattr(module, "claim_of", lambda *_: claim)
    monkeypatch.setattr(module, "load_corpus", lambda _: few)
    result, comparison = reproduce("./mine.py", tmp_path / "out", tune=True)
    tuning = result["tuning"]
    assert set(tuning["arms"]) == {"baseline", "treatment"}
    assert tuning["best"]["more"] == tuning["best"]["treatment"]
    assert "more has the values of treatment" in how_tuned(result)
    assert tuning["budget"] == "2steps"
    tuned = {path: json.loads((path / "run.json").read_text()) for path in (tmp_path / "out" / "tuning").glob("*/0")}
    assert {path.parent.name: run["steps"] for path, run in tuned.items()} == {"baseline": 2, "treatment": 2}
    assert {run["arm"]: run["steps"] for run in comparison.to_json()["runs"]} == {
        "baseline": 3,
        "treatment": 4,
        "more": 4,
    }


@pytest.mark.parametrize(
    "strange",
    [
        {"budget_fractions": {"moe": 0.5}},
        {"tuned_like": {"moe": "baseline"}},
        {"tuned_like": {"treatment": "baseline"}},
    ],
)
def test_a_claim_names_arms_that_it_has(strange):
    with pytest.raises(UserError, match=r"no arm of the claim|Only a further arm"):
        Claim("s", RECIPE, RECIPE, "emoji", Budget(steps=2), 3, ("test/text_to_image/MRR",), **strange)


def test_a_fraction_of_a_budget_is_whole_and_not_nothing():
    assert Budget(steps=450).scaled(0.9) == Budget(steps=405)
    assert Budget(examples=3).scaled(0.01) == Budget(examples=1)
    assert Budget(seconds=10.0).scaled(0.25) == Budget(seconds=2.5)


def test_only_methods_that_are_trained_are_tuned(tmp_path):
    with pytest.raises(UserError, match="Only methods that are trained can be tuned"):
        reproduce("aloha", tmp_path, tune=True)


def test_a_field_that_came_later_leaves_the_hashes_of_claims_without_it() -> None:
    claim = Claim("A sentence.", clip.Recipe(), clip.Recipe(), "emoji", Budget(steps=1), 1, ("R@1",))
    later = replace(claim, start_tests=True)
    assert "start_tests" not in _plain(claim)
    assert _plain(later)["start_tests"] is True
    assert claim_version(claim) != claim_version(later)
