"""Seconds to steps: a busy machine does not change how many, and nothing but the number remains of the timing."""

import itertools
import json
import os
import signal
import threading

import pytest
import torch

from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.reproduce import Arm, compare, timing
from polymodal.reproduce.leaderboard import steps_note
from polymodal.reproduce.timing import (
    FEW_STEPS,
    MIN_STEPS,
    TURNS,
    StageCost,
    TimedArm,
    few_steps,
    recorded_steps,
    steps_that_fit,
    time_arms,
)
from polymodal.training import Interrupted
from polymodal.training.loop import Trainer
from polymodal.types import Budget, Stage

CLIP, SIGLIP = clip.Recipe(batch_size=32), siglip.Recipe(batch_size=32)


class FakeClock:
    """A clock that only steps move: seconds of each by its recipe, and pauses. visited: (recipe, batch), in order."""

    def __init__(self, monkeypatch, seconds, pause=lambda turn, step: 0.0, first_visit=0.0):
        self.now = 0.0
        self.visited = []
        turns = {}

        def step(trainer, stop=False):
            kind = type(trainer.recipe)
            while trainer.progress.stage + 1 < len(trainer.stages) and trainer.fraction >= (
                trainer.ends[trainer.progress.stage] - 1e-9
            ):
                trainer.progress.stage += 1
            if isinstance(trainer.active.data, timing._ChosenBatches):
                batch = trainer.active.data.number
                cost = seconds(kind, batch, trainer.stages[trainer.progress.stage].name)
                new = (kind, batch) not in self.visited
                self.visited.append((kind, batch))
                self.now += cost + first_visit * new + pause(kind, turns.get(kind, 0))
                turns[kind] = turns.get(kind, 0) + 1
            else:
                self.visited.append((kind, 0))
            return {}

        monkeypatch.setattr(Trainer, "step", step)

    def __call__(self):
        return self.now


def timed(corpus, clock, seconds=60.0, arms=(("clip", CLIP), ("siglip", SIGLIP))):
    costs = time_arms([TimedArm(label, recipe, corpus) for label, recipe in arms], seconds, clock=clock)
    return {label: steps_that_fit(stages, seconds) for label, stages in costs.items()}


def uneven(kind, batch, stage):
    """Batches of different lengths; an arm that is twice as slow."""
    return (0.02 + 0.004 * (batch % 3)) * (2 if kind is siglip.Recipe else 1)


def test_pauses_and_load_in_the_turns_of_one_arm_leave_the_steps_as_they_are(small_emoji, monkeypatch):
    with monkeypatch.context() as patch:
        alone = timed(small_emoji, FakeClock(patch, uneven))
    assert alone == {"clip": pytest.approx(60 / 0.024, rel=0.01), "siglip": pytest.approx(30 / 0.024, rel=0.01)}

    def every_third_step(kind, step):
        return 5.0 * (kind is clip.Recipe and step % 3 == 0)

    def two_turns(kind, step):  # four steps of warm-up, then turns of five
        return 0.1 * (kind is clip.Recipe and 4 <= step < 14)

    for load in (every_third_step, two_turns):
        with monkeypatch.context() as patch:
            loaded = timed(small_emoji, FakeClock(patch, uneven, load))
        assert loaded == {label: pytest.approx(steps, rel=0.1) for label, steps in alone.items()}


def test_first_visits_of_batches_count_once_an_epoch(small_emoji, monkeypatch):
    epoch = len(small_emoji.rows("train")) // 32
    clock = FakeClock(monkeypatch, lambda *_: 0.1, first_visit=0.4)
    assert timed(small_emoji, clock, 1000.0)["clip"] == pytest.approx((1000 - 0.4 * epoch) / 0.1, abs=2)
    assert steps_that_fit([StageCost(1.0, 0.1, 0.4, 100)], 10.0) == 20  # all of them in the first epoch


def test_arms_take_turns(small_emoji, monkeypatch):
    clock = FakeClock(monkeypatch, lambda *_: 0.1)
    timed(small_emoji, clock)
    kinds = [kind for kind, _ in clock.visited]
    changes = sum(one is not other for one, other in itertools.pairwise(kinds))
    assert changes == 2 * (TURNS + 1) - 1  # the warm-up, and every turn


def test_stages_are_timed_by_their_fractions(small_emoji, monkeypatch):
    class Staged(clip.Recipe):
        def stages(self):
            return (Stage("quick", 0.75), Stage("slow", 0.25))

    seconds = {"quick": 0.1, "slow": 0.5}
    clock = FakeClock(monkeypatch, lambda kind, batch, stage: seconds[stage])
    costs = time_arms([TimedArm("staged", Staged(batch_size=32), small_emoji)], 60.0, clock=clock)["staged"]
    assert [(cost.fraction, cost.seconds) for cost in costs] == [(0.75, pytest.approx(0.1)), (0.25, pytest.approx(0.5))]
    assert steps_that_fit(costs, 60.0) == pytest.approx(60 / (0.75 * 0.1 + 0.25 * 0.5), abs=1)


def test_a_slow_arm_has_a_few_steps_and_that_is_said(small_emoji, monkeypatch):
    clock = FakeClock(monkeypatch, lambda kind, *_: 40.0 if kind is siglip.Recipe else 0.5)
    steps = timed(small_emoji, clock, 60.0)
    assert steps == {"clip": 119, "siglip": MIN_STEPS} or steps == {"clip": 120, "siglip": MIN_STEPS}
    assert sum(kind is siglip.Recipe for kind, _ in clock.visited) <= FEW_STEPS
    assert "'siglip' (3 steps)" in few_steps(steps, "60s")
    assert "clip (" not in few_steps(steps, "60s")
    assert few_steps({"clip": FEW_STEPS}, "60s") == ""


def test_threads_that_wait_for_cores_are_timed_one_by_one(small_emoji, monkeypatch):
    def seconds(kind, *_):
        if torch.get_num_threads() == 1:
            return 0.2 if kind is siglip.Recipe else 0.1
        return 0.125 if kind is siglip.Recipe else 0.3  # where a step of clip waits for cores

    waited = iter([0.0, 1000.0, 0.0, 0.0])
    monkeypatch.setattr(timing, "waited_by_all_threads", lambda: next(waited))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        busy = timed(small_emoji, FakeClock(monkeypatch, seconds))
        assert torch.get_num_threads() == 2
        idle = timed(small_emoji, FakeClock(monkeypatch, seconds))
    finally:
        torch.set_num_threads(before)
    assert busy == {"clip": pytest.approx(60 / (0.1 / 1.6), abs=1), "siglip": pytest.approx(60 / 0.125, abs=1)}
    assert idle == {"clip": pytest.approx(60 / 0.3, abs=1), "siglip": pytest.approx(60 / 0.125, abs=1)}


def test_timing_leaves_random_numbers_and_features_as_they_were(small_emoji, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    costs = time_arms([TimedArm("clip", CLIP, small_emoji)], 0.5)
    assert torch.equal(torch.rand(4), expected)
    assert costs["clip"][0].seconds > 0
    assert not (tmp_path / "cache" / "features").exists()


def test_ctrl_c_while_timing_leaves_nothing(small_emoji, tmp_path, monkeypatch):
    assert threading.current_thread() is threading.main_thread()
    pressed = []

    def press(*_):
        if not pressed:
            os.kill(os.getpid(), signal.SIGINT)
        pressed.append("Ctrl-C")
        return 0.1

    FakeClock(monkeypatch, press)
    with pytest.raises(Interrupted, match="while the recipes were timed"):
        compare([Arm("clip", CLIP)], small_emoji, Budget(seconds=5), 1, tmp_path / "out")
    assert len(pressed) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def in_seconds(small_emoji, tmp_path_factory):
    few = small_emoji.with_splits({"train": small_emoji.rows("train"), "test": small_emoji.rows("test")[:20]})
    arms = [Arm("clip", CLIP), Arm("siglip", SIGLIP)]
    return compare(arms, few, Budget(seconds=0.4), 2, tmp_path_factory.mktemp("seconds"))


def test_all_seeds_have_the_recorded_steps(in_seconds):
    results = json.loads((in_seconds.directory / "results.json").read_text())
    kept = json.loads((in_seconds.directory / "steps.json").read_text())
    assert results["budget"] == "0.4s"
    assert [(run["arm"], run["seed"]) for run in results["runs"]] == [
        ("clip", 0),
        ("siglip", 0),
        ("clip", 1),
        ("siglip", 1),
    ]
    for run in results["runs"]:
        assert run["steps"] == kept[run["arm"]]["steps"] >= MIN_STEPS
        assert run["examples"] == 32 * run["steps"]
        assert run["seconds"] > 0
        assert run["flops"] > 1e6 * run["examples"]
    page = (in_seconds.directory / "report.html").read_text()
    assert "Cost of a run" in page
    assert "timed in alternation" in page
    assert steps_note(in_seconds) in page.replace("&#39;", "'")


def test_recorded_steps_give_the_same_weights_to_the_bit(in_seconds, tmp_path):
    budget, steps = recorded_steps(in_seconds.directory / "results.json")
    again = compare(in_seconds.arms, in_seconds.corpus, budget, [1], tmp_path / "again", steps=steps)
    for trial, before in zip(again.trials, [one for one in in_seconds.trials if one.seed == 1], strict=True):
        weights = before.run.model.state_dict()
        assert trial.run.record["steps"] == before.run.record["steps"]
        assert all(torch.equal(value, weights[name]) for name, value in trial.run.model.state_dict().items())


def test_a_comparison_goes_on_with_its_steps_and_new_arms_get_theirs_in_proportion(in_seconds, monkeypatch):
    def twice_as_fast(arms, seconds, *_):
        steps = {"clip": kept["clip"]["steps"], "siglip": kept["siglip"]["steps"], "third": 10}
        return {arm.label: [StageCost(1.0, seconds / (2 * steps[arm.label] + 0.01), 0.0, 1)] for arm in arms}

    kept = json.loads((in_seconds.directory / "steps.json").read_text())
    monkeypatch.setattr(timing, "time_arms", twice_as_fast)
    display = timing.Display(["clip", "siglip", "third"], [0], in_seconds.budget)
    third = Arm("third", clip.Recipe(batch_size=64))
    arms = [TimedArm(arm.label, arm.recipe, in_seconds.corpus) for arm in [*in_seconds.arms, third]]
    given = timing.budgets_in_steps(arms[:2], in_seconds.budget, [0], in_seconds.directory, display)
    assert {label: budget.steps for label, budget in given.items()} == {label: kept[label]["steps"] for label in given}
    monkeypatch.setattr(timing, "write_json", lambda *_: None)
    given = timing.budgets_in_steps(arms, in_seconds.budget, [0], in_seconds.directory, display)
    assert {label: budget.steps for label, budget in given.items()} == {
        "clip": kept["clip"]["steps"],
        "siglip": kept["siglip"]["steps"],
        "third": 10,
    }


def test_steps_that_do_not_fit_a_comparison_are_refused(in_seconds, tmp_path):
    with pytest.raises(UserError, match="no number of steps for 'siglip', only for clip"):
        compare(in_seconds.arms, in_seconds.corpus, Budget(seconds=1), 1, tmp_path, steps={"clip": 5})
    steps = {"clip": 9999, "siglip": 9999}
    with pytest.raises(UserError, match="choose another --out"):
        compare(in_seconds.arms, in_seconds.corpus, in_seconds.budget, 1, in_seconds.directory, steps=steps)
    with pytest.raises(UserError, match=r"no file .*none\.json"):
        recorded_steps(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match=r"not the results\.json"):
        recorded_steps(tmp_path / "other.json")
    runs = [{"arm": "clip", "steps": 992}, {"arm": "clip", "steps": 350}]
    (tmp_path / "old.json").write_text(json.dumps({"budget": "25s", "runs": runs}))
    with pytest.raises(UserError, match="differ in steps"):
        recorded_steps(tmp_path / "old.json")


def test_other_budgets_stay(small_emoji):
    arms = [TimedArm("clip", CLIP, small_emoji)]
    for budget in (Budget(steps=3), Budget(examples=64), Budget(flops=1e9), Budget(tokens=100)):
        display = timing.Display(["clip"], [0], budget)
        assert timing.budgets_in_steps(arms, budget, [0], None, display) == {"clip": budget}


def test_what_waits_for_a_core_is_no_time_of_the_clock():
    assert timing.undisturbed_seconds() <= timing.undisturbed_seconds()
    assert timing.waited_by_all_threads() >= 0
