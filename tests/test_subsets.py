"""Nested subsets and language probabilities (WebLI-100B), and the inverse-square-root schedule with a cool-down."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from corpus_modules import module
from polymodal.data.subsets import best_scored, epochs_by_group, grouped_order, nested_subset, rebalanced
from polymodal.errors import UserError
from polymodal.evaluation.head_tail import MIN_IMBALANCE, imbalance
from polymodal.training.optimizer import OptimizerConfig, learning_rate

KEYS = [f"pair {number}" for number in range(4000)]


def test_subsets_of_a_seed_are_nested_and_depend_on_keys_alone():
    small, middle, large = (nested_subset(KEYS, fraction) for fraction in (0.01, 0.1, 1.0))
    assert [len(small), len(middle), len(large)] == [40, 400, 4000]
    assert {*small} < {*middle} < {*large}
    order = np.random.default_rng(0).permutation(len(KEYS))
    shuffled = nested_subset([KEYS[place] for place in order], 0.1)
    assert {KEYS[order[place]] for place in shuffled} == {KEYS[place] for place in middle}
    # Uniform: each quarter of the keys has a quarter of the subset, within four standard errors.
    assert np.abs(np.bincount(middle // 1000, minlength=4) - 100).max() < 35
    # Of another seed, it is independent: a tenth of it is in both.
    other = nested_subset(KEYS, 0.1, seed=1)
    assert len({*other} & {*middle}) == pytest.approx(40, abs=25)
    assert len(nested_subset(KEYS[:3], 0.01)) == 1


def test_the_best_scored_are_kept_in_order():
    assert best_scored(np.array([0.2, np.nan, 0.9, 0.2, 0.5]), 0.6).tolist() == [0, 2, 4]
    assert best_scored(np.array([np.nan, np.nan]), 0.5).tolist() == [0]


def test_rebalanced_probabilities_keep_the_ratios_of_other_languages():
    counts = {"en": 354, "ja": 88, "sw": 1, "bn": 2}
    found = rebalanced(counts, ("sw", "bn"), 0.01)
    assert sum(found.values()) == pytest.approx(1)
    assert (found["sw"], found["bn"]) == (0.01, 0.01)
    assert found["en"] / found["ja"] == pytest.approx(354 / 88)
    assert epochs_by_group(counts, found, 1000) == pytest.approx(
        {"en": 980 / 442, "ja": 980 / 442, "sw": 10.0, "bn": 5.0}
    )
    with pytest.raises(UserError, match="te"):
        rebalanced(counts, ("te",), 0.01)
    with pytest.raises(UserError, match="leave nothing"):
        rebalanced(counts, ("sw", "bn"), 0.5)


def test_an_order_has_each_group_by_its_probability_in_epochs():
    groups = [np.arange(90), np.arange(90, 95)]
    order = grouped_order(groups, [0.9, 0.1], seed=3)
    first = [int(order[place]) for place in range(1000)]
    rare = [row for row in first if row >= 90]
    assert len(rare) == pytest.approx(100, abs=1)
    assert set(Counter(rare[:100]).values()) == {20}  # whole epochs
    assert rare[:5] != rare[5:10] or rare[5:10] != rare[10:15]
    assert first == [int(grouped_order(groups, [0.9, 0.1], seed=3)[place]) for place in range(1000)]
    alone = grouped_order(groups, [0.0, 1.0], seed=3)
    assert {int(alone[place]) for place in range(5)} == {*range(90, 95)}


def test_inverse_square_root_with_cooldown_is_the_schedule_times_a_line():
    plain, cooled = (
        OptimizerConfig(1.0, lr_scheduler=name, warmup_ratio=0.2, cooldown_ratio=0.25)
        for name in ("inverse_sqrt", "inverse_sqrt_cooldown")
    )
    for fraction in (0.1, 0.2, 0.5, 0.75):
        assert learning_rate(cooled, fraction) == pytest.approx(learning_rate(plain, fraction))
    assert learning_rate(cooled, 0.9) == pytest.approx(learning_rate(plain, 0.9) * 0.4)
    assert learning_rate(cooled, 1.0) == 0


def test_a_tenth_of_the_pairs_covers_the_head_in_english_and_lacks_the_tail() -> None:
    """What the claim about scale rests on: more pairs cannot add much to the head, and can to the tail."""
    zipf_emoji = module("zipf_emoji")
    count, texts = zipf_emoji.PAIRS, [[25] * 20] * zipf_emoji.CONCEPTS
    vendors = [[0, 1, 2, 3] if concept % 7 else [0] for concept in range(zipf_emoji.CONCEPTS)]
    pairs = np.array(zipf_emoji.sample_pairs(vendors, texts, count, np.random.default_rng(0)))
    vendors_of = Counter(list(zipf_emoji.VENDORS)[vendor] for vendor in pairs[:, 1])
    assert imbalance(vendors_of) > 1.1 * MIN_IMBALANCE, "a long tail, which the panel scores"
    tenth = pairs[nested_subset([str(number) for number in range(count)], 0.1)]
    frequency = np.bincount(pairs[:, 0], minlength=zipf_emoji.CONCEPTS)
    tiers = {"head": np.argsort(-frequency)[:100], "tail": np.argsort(-frequency)[-100:]}

    def known(chosen: np.ndarray, tier: str) -> float:
        return float(np.isin(tiers[tier], chosen[chosen[:, 2] == 0, 0]).mean())

    assert known(tenth, "head") > 0.8
    assert known(tenth, "tail") < 0.5
    assert min(known(pairs, "head"), known(pairs, "tail")) > 0.97


def test_pairs_with_long_tails_are_different_and_follow_the_laws():
    zipf_emoji = module("zipf_emoji")
    vendors = [[0, 1, 2, 3]] * 30 + [[0]] * 10
    texts = [[25] * 20] * 40
    pairs = zipf_emoji.sample_pairs(vendors, texts, 3000, np.random.default_rng(0))
    assert len({*pairs}) == 3000
    assert {vendor for concept, vendor, *_ in pairs if concept >= 30} == {0}
    concepts, spoken = (Counter(pair[place] for pair in pairs) for place in (0, 2))
    head, tail = (sum(concepts[n] for n in tier) for tier in (range(13), range(27, 40)))
    assert head > 8 * tail > 0
    assert spoken.most_common(1)[0][0] == 0
    assert all(0 <= text < 25 for *_, text in pairs)
    captions = [{"text": text, "language": "en"} for text in ("pepper", "chili, hot")]
    assert zipf_emoji.texts_of(captions, "en") == ["pepper", "chili", "hot", "chili, hot"]
