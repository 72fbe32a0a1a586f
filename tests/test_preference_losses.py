"""Losses of preferences: limiting cases, formulas in plain loops, and figures of trl."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.objectives.autoregressive import next_token_losses, segment_sum
from polymodal.objectives.preference import (
    PreferenceLoss,
    RewardShift,
    aot_unpaired,
    bco,
    dpo,
    hinge,
    ipo,
    orpo,
    preference_loss,
    robust_dpo,
    sppo,
)

GOLDEN = Path(__file__).parent / "golden" / "mpo.npz"


@pytest.mark.parametrize(
    ("name", "kind", "smoothing"),
    [
        ("dpo", "dpo", 0.0),
        ("cdpo", "dpo", 0.1),
        ("robust_dpo", "robust_dpo", 0.1),
        ("hinge", "hinge", 0.0),
        ("ipo", "ipo", 0.0),
        ("sppo", "sppo", 0.0),
        ("aot", "aot", 0.0),
        ("aot_unpaired", "aot_unpaired", 0.0),
        ("orpo", "orpo", 0.0),
    ],
)
def test_every_loss_has_the_figures_of_trl(name: str, kind: PreferenceLoss, smoothing: float) -> None:
    """tests/golden/mpo.txt, from the logits of three batches on."""
    given = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN).items()}
    for step, expected in enumerate(given[f"loss/{name}"]):
        pairs = [log_probs(given[key][step], given["labels"][step]) for key in ("policy_logits", "reference_logits")]
        lengths = (given["labels"][step][:, 1:] != -100).sum(1).float().view(2, -1).T
        torch.testing.assert_close(preference_loss(kind, *pairs, lengths, 0.1, smoothing), expected, atol=0, rtol=1e-5)


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of chosen and rejected answers: sums over the tokens that have a label."""
    rows, before = (labels[:, 1:] != -100).nonzero().unbind(1)
    nats = next_token_losses(logits[rows, before], labels[rows, before + 1])
    return -segment_sum(nats, rows, len(labels)).view(2, -1).T


def test_the_reward_shift_is_the_mean_of_all_rewards_so_far() -> None:
    shift, seen = RewardShift(), [torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 6.0], [0.0, 1.0]])]
    assert shift(seen[0]).item() == pytest.approx(1.5)
    assert shift(seen[1]).item() == pytest.approx(13 / 6)
    assert {"delta", "count"} == set(shift.state_dict()), "a checkpoint has it"


def rewards(seed: int = 0, count: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, count, generator=generator, dtype=torch.float64))


def test_a_model_that_is_its_own_reference_loses_the_logarithm_of_two() -> None:
    zero = torch.zeros(4)
    assert dpo(zero, zero).item() == pytest.approx(math.log(2))
    assert bco(zero, zero, 0.0).item() == pytest.approx(2 * math.log(2))
    assert aot_unpaired(zero, zero).item() == pytest.approx(math.log(2))
    assert hinge(zero, zero).item() == 1
    assert ipo(zero, zero, 0.1).item() == pytest.approx(25)
    assert sppo(zero, zero, 0.1).item() == pytest.approx(50)


def test_losses_are_their_formulas() -> None:
    chosen, rejected = rewards()

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    mean = lambda of: pytest.approx(np.mean([of(c, r) for c, r in pairs]))  # noqa: E731
    assert dpo(chosen, rejected).item() == mean(lambda c, r: -log_sigmoid(c - r))
    assert dpo(chosen, rejected, 0.2).item() == mean(lambda c, r: -0.8 * log_sigmoid(c - r) - 0.2 * log_sigmoid(r - c))
    assert robust_dpo(chosen, rejected, 0.2).item() == mean(
        lambda c, r: (-0.8 * log_sigmoid(c - r) + 0.2 * log_sigmoid(r - c)) / 0.6
    )
    assert hinge(chosen, rejected).item() == mean(lambda c, r: max(0, 1 - (c - r)))
    assert bco(chosen, rejected, 0.3).item() == mean(lambda c, r: -log_sigmoid(c - 0.3) - log_sigmoid(0.3 - r))
    assert ipo(chosen, rejected, 0.5).item() == mean(lambda c, r: ((c - r) / 0.5 - 1) ** 2)
    assert sppo(chosen, rejected, 0.5).item() == mean(lambda c, r: (c / 0.5 - 1) ** 2 + (r / 0.5 + 1) ** 2)
    below, lower = -chosen.abs() - 0.1, -rejected.abs() - 0.1
    odds = lambda x: x - math.log(1 - math.exp(x))  # noqa: E731
    expected = [-log_sigmoid(odds(c) - odds(r)) for c, r in zip(below.tolist(), lower.tolist(), strict=True)]
    assert orpo(below, lower).item() == pytest.approx(np.mean(expected))


def test_robust_dpo_is_right_on_average_where_pairs_are_the_wrong_way_round() -> None:
    chosen, rejected = rewards()
    share = 0.3
    expected = (1 - share) * robust_dpo(chosen, rejected, share) + share * robust_dpo(rejected, chosen, share)
    assert expected.item() == pytest.approx(dpo(chosen, rejected).item())


def test_a_constant_on_all_rewards_and_on_the_center_changes_nothing() -> None:
    chosen, rejected = rewards()
    moved = bco(chosen + 2.5, rejected + 2.5, torch.tensor(0.4 + 2.5))
    torch.testing.assert_close(moved, bco(chosen, rejected, torch.tensor(0.4)))


def test_unpaired_aot_does_not_ask_which_answer_belongs_to_which() -> None:
    chosen, rejected = rewards()
    order = torch.randperm(len(rejected), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(aot_unpaired(chosen, rejected[order]), aot_unpaired(chosen, rejected))
    assert not torch.isclose(dpo(chosen, rejected[order]), dpo(chosen, rejected))
