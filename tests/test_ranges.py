"""Numbers outside their range are named with their flag; what ships is inside."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from polymodal import recipes
from polymodal.constraints import (
    DecayRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveUnitInterval,
    UnitInterval,
    UnitRange,
    describe_constraint,
    validate_constraints,
)
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget


@dataclass(frozen=True)
class Inner:
    width: PositiveInt = 1


@dataclass(frozen=True)
class Outer:
    count: PositiveInt = 1
    whole: NonNegativeInt = 0
    positive: PositiveFloat = 1.0
    not_negative: NonNegativeFloat = 0.0
    share: UnitInterval = 1.0
    below_one: DecayRate = 0.0
    factor: PositiveUnitInterval = 1.0
    pair: tuple[DecayRate, DecayRate] = (0.0, 0.5)
    shares: UnitRange = (0.5, 1.0)
    some: tuple[PositiveInt, ...] = ()
    perhaps: PositiveFloat | None = None
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
    validate_constraints(Outer())
    validate_constraints(Outer(perhaps=0.5, some=(3,)))
    with pytest.raises(UserError) as error:
        validate_constraints(replace(Outer(), **changes))
    assert str(error.value) == said


def test_what_a_range_is_called() -> None:
    assert (
        describe_constraint(PositiveInt)
        == describe_constraint(tuple[PositiveInt, ...])
        == describe_constraint(PositiveInt | None)
        == "at least 1"
    )
    assert describe_constraint(UnitRange) == "from 0 to 1"
    assert describe_constraint(float) == describe_constraint(str) == ""


@pytest.mark.parametrize("name", recipes.entries())
def test_presets_and_claims_are_inside(name: str) -> None:
    kind = recipes.find(name)
    validate_constraints(kind())
    if hasattr(kind, "paper"):
        validate_constraints(kind.paper())
    for claim in recipes.claims(name).values():
        for arm in (claim.baseline, claim.treatment, *claim.further.values(), claim.start):
            if arm is not None:
                validate_constraints(arm)


def test_training_refuses_what_is_outside(small_emoji) -> None:
    for recipe, said in (
        (clip.Recipe(optimizer=OptimizerConfig(learning_rate=-1.0)), "--optimizer.learning-rate is at least 0"),
        (clip.Recipe(image=ImageEncoderConfig(depth=-1)), "--image.depth is at least 0"),
        (clip.Recipe(image=ImageEncoderConfig(image_size=30)), "Patches of 8 px do not tile an image of 30 px"),
    ):
        with pytest.raises(UserError, match=said):
            train(recipe, small_emoji, Budget(steps=1))
    with pytest.raises(UserError, match="--device gpu cannot be used"):
        train(clip.Recipe(), small_emoji, Budget(steps=1), runtime=RuntimeConfig(device="gpu"))
    with pytest.raises(UserError, match="--keep-checkpoints is at least 1, not 0"):
        RuntimeConfig(keep_checkpoints=0)


@pytest.mark.parametrize("words", [["show", "clip"], ["show", "clip", "--json"]])
def test_ranges_are_shown(polymodal, words: list[str]) -> None:
    assert "float, at least 0 and below 1" in polymodal(*words).stdout


def test_a_flag_outside_is_refused_before_anything_is_done(polymodal, tmp_path) -> None:
    done = polymodal("train", "clip", "--corpus", "emoji", "--image.width", "0", "--out", "run")
    assert (done.returncode, done.stderr) == (2, "polymodal: --image.width is at least 1, not 0.\n")
    assert not (tmp_path / "run").exists()
