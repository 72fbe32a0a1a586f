import pytest

from polymodal.errors import UserError, unknown
from polymodal.types import Budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200steps", Budget(steps=200)),
        ("5000 examples", Budget(examples=5000)),
        ("60s", Budget(seconds=60)),
        ("1.5h", Budget(seconds=5400)),
        ("20m", Budget(seconds=1200)),
        ("1e6tokens", Budget(tokens=1_000_000)),
        ("1.5e15 flops", Budget(flops=1.5e15)),
    ],
)
def test_budget_parses_every_unit(text, expected):
    assert Budget.parse(text) == expected
    assert Budget.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "12", "12 parsecs", "-3steps", "0s", "1.5steps", "nan s"])
def test_budget_refuses_with_a_sentence(text):
    with pytest.raises(UserError, match="budget"):
        Budget.parse(text)


def test_budget_fraction_counts_only_its_own_unit_and_stops_at_one():
    assert Budget(steps=10).fraction(steps=5, examples=999, seconds=999) == 0.5
    assert Budget(seconds=10).fraction(steps=999, examples=999, seconds=2) == 0.2
    assert Budget(examples=10).fraction(steps=0, examples=50, seconds=0) == 1.0


def test_unknown_name_suggests_the_nearest_or_lists_all():
    assert "did you mean 'clip'" in str(unknown("recipe", "clpi", ["clip", "sparc"]))
    assert "clip, sparc" in str(unknown("recipe", "zzz", ["sparc", "clip"]))
