"""Numbers outside their range are named with their flag; what ships is inside."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from polymodal import recipes
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.ranges import (
    BelowOne,
    Count,
    Factor,
    NotNegative,
    Positive,
    Share,
    Shares,
    Whole,
    check_ranges,
    range_of,
)
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.execution import Execution
from polymodal.types import Budget


@dataclass(frozen=True)
class Inner:
    width: Count = 1


@dataclass(frozen=True)
class Outer:
    count: Count = 1
    whole: Whole = 0
    positive: Positive = 1.0
    not_negative: NotNegative = 0.0
    share: Share = 1.0
    below_one: BelowOne = 0.0
    factor: Factor = 1.0
    pair: tuple[BelowOne, BelowOne] = (0.0, 0.5)
    shares: Shares = (0.5, 1.0)
    some: tuple[Count, ...] = ()
    perhaps: Positive | None = None
    free: float = -7.0
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 0}, "--count is at least 1, not 0."),
        ({"whole": -1}, "--whole is at least 0, not -1."),
        ({"positive": 0.0}, "--positive is above 0, not 0.0."),
        ({"positive": float("nan")}, "--positive is above 0, not nan."),
        ({"not_negative": -0.5}, "--not-negative is at least 0, not -0.5."),
        ({"share": 1.5}, "--share is from 0 to 1, not 1.5."),
        ({"below_one": 1.0}, "--below-one is at least 0 and below 1, not 1.0."),
        ({"factor": 0.0}, "--factor is above 0 and at most 1, not 0.0."),
        ({"pair": (0.5, 2.0)}, "--pair is at least 0 and below 1, not 2.0."),
        ({"shares": (0.5, 2.0)}, "--shares is from 0 to 1, not 2.0."),
        ({"shares": (1.0, 0.5)}, "--shares takes the smallest number first, not 1.0 0.5."),
        ({"some": (8, 0)}, "--some is at least 1, not 0."),
        ({"perhaps": -1.0}, "--perhaps is above 0, not -1.0."),
        ({"inner": Inner(0)}, "--inner.width is at least 1, not 0."),
    ],
)
def test_the_first_number_outside_is_named(changes: dict, said: str) -> None:
    check_ranges(Outer())
    check_ranges(Outer(perhaps=0.5, some=(3,)))
    with pytest.raises(UserError) as error:
        check_ranges(replace(Outer(), **changes))
    assert str(error.value) == said


def test_what_a_range_is_called() -> None:
    assert range_of(Count) == range_of(tuple[Count, ...]) == range_of(Count | None) == "at least 1"
    assert range_of(Shares) == "from 0 to 1"
    assert range_of(float) == range_of(str) == ""


@pytest.mark.parametrize("name", recipes.entries())
def test_presets_and_claims_are_inside(name: str) -> None:
    kind = recipes.find(name)
    check_ranges(kind())
    if hasattr(kind, "paper"):
        check_ranges(kind.paper())
    for claim in recipes.claims(name).values():
        for arm in (claim.baseline, claim.treatment, *claim.further.values(), claim.start):
            if arm is not None:
                check_ranges(arm)


def test_training_refuses_what_is_outside(small_emoji) -> None:
    for recipe, said in (
        (clip.Recipe(learning_rate=-1.0), "--learning-rate is at least 0"),
        (clip.Recipe(image=ImageEncoderConfig(depth=-1)), "--image.depth is at least 0"),
        (clip.Recipe(image=ImageEncoderConfig(size=30)), "Patches of 8 px do not tile a picture of 30 px"),
    ):
        with pytest.raises(UserError, match=said):
            train(recipe, small_emoji, Budget(steps=1))
    with pytest.raises(UserError, match="--device gpu cannot be used"):
        train(clip.Recipe(), small_emoji, Budget(steps=1), execution=Execution(device="gpu"))
    with pytest.raises(UserError, match="--keep is at least 1, not 0"):
        Execution(keep=0)


@pytest.mark.parametrize("words", [["show", "clip"], ["show", "clip", "--json"]])
def test_ranges_are_shown(polymodal, words: list[str]) -> None:
    assert "float, at least 0 and below 1" in polymodal(*words).stdout


def test_a_flag_outside_is_refused_before_anything_is_done(polymodal, tmp_path) -> None:
    done = polymodal("train", "clip", "--corpus", "emoji", "--image.width", "0", "--out", "run")
    assert (done.returncode, done.stderr) == (2, "polymodal: --image.width is at least 1, not 0.\n")
    assert not (tmp_path / "run").exists()
