"""Masks: how much is masked, in which form, and that an example's mask is its own."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.data.masked_input import MaskedInput, mask_texts, mask_tokens, mask_values
from polymodal.data.masks import (
    expand_content,
    expand_words,
    mask_blocks,
    mask_noise_spans,
    mask_patches,
    mask_random,
    mask_spans,
    mask_spectrogram,
    mask_text_spans,
    mask_time_spans,
    mask_tubes,
    restore_indices,
    visible_indices,
)
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG

LENGTHS = [40, 7, 25, 1, 0, 33]
OF_LENGTHS = {
    "random": lambda lengths, rng: mask_random(lengths, 0.4, rng),
    "bernoulli": lambda lengths, rng: mask_random(lengths, 0.4, rng, exact=False),
    "poisson": lambda lengths, rng: mask_spans(lengths, 0.4, rng),
    "geometric": lambda lengths, rng: mask_spans(lengths, 0.4, rng, 5.0, "geometric"),
    "noise": lambda lengths, rng: mask_noise_spans(lengths, 0.4, rng),
    "time": lambda lengths, rng: mask_time_spans(lengths, 0.065, 10, rng),
    "time exact": lambda lengths, rng: mask_time_spans(lengths, 0.065, 10, rng, exact=True),
    "spectrogram": lambda lengths, rng: mask_spectrogram(lengths, 1, 0.4, rng),
}


def part(rng, rows):
    return ExampleRNG(rng.seeds[rows])


def runs(row):
    """Lengths of the masked stretches of a sequence."""
    return [len(list(group)) for masked, group in itertools.groupby(row.tolist()) if masked]


@pytest.mark.parametrize("kind", OF_LENGTHS)
def test_an_examples_mask_does_not_depend_on_its_batch_and_stays_within_its_length(kind):
    whole = OF_LENGTHS[kind](LENGTHS, ExampleRNG.of(3, 0, len(LENGTHS)))
    assert whole.any()
    for row, length in enumerate(LENGTHS):
        assert not whole[row, length:].any()
        if length:
            alone = OF_LENGTHS[kind]([length], part(ExampleRNG.of(3, 0, len(LENGTHS)), [row]))
            assert torch.equal(alone[0], whole[row, :length])


def test_images_masks_do_not_depend_on_their_batch():
    for make in (lambda rng: mask_patches(49, 0.6, rng), lambda rng: mask_blocks(7, 0.4, rng)):
        whole = make(ExampleRNG.of(0, 0, 6))
        assert torch.equal(make(ExampleRNG.of(0, 2, 3)), whole[2:5])
        assert len({tuple(row.tolist()) for row in whole}) == 6


@pytest.mark.parametrize("kind", ["random", "poisson", "geometric"])
def test_exactly_the_ratio_of_every_sequence_is_masked(kind):
    mask = OF_LENGTHS[kind](LENGTHS, ExampleRNG.of(0, 0, len(LENGTHS)))
    assert mask.sum(1).tolist() == [round(0.4 * length) for length in LENGTHS]


def test_every_position_is_masked_equally_often():
    often = mask_random([10] * 3000, 0.3, ExampleRNG.of(0, 0, 3000)).float().mean(0)
    torch.testing.assert_close(often, torch.full((10,), 0.3), atol=0.04, rtol=0)
    often = mask_random([10] * 3000, 0.3, ExampleRNG.of(0, 0, 3000), exact=False).float()
    torch.testing.assert_close(often.mean(0), torch.full((10,), 0.3), atol=0.04, rtol=0)
    assert often.sum(1).unique().numel() > 5
    assert mask_random([10] * 50, 0.0, ExampleRNG.of(0, 0, 50), min_masked=1, exact=False).sum(1).tolist() == [1] * 50
    assert mask_random([3, 1], 0.1, ExampleRNG.of(0, 0, 2), min_masked=2).sum(1).tolist() == [2, 1]


def test_spans_have_the_lengths_of_their_distribution():
    """Little is masked of long sequences, so that spans neither touch nor are cut, but for the last one."""
    rng = ExampleRNG.of(0, 0, 300)
    poisson = [n for row in mask_spans([5000] * 300, 0.02, rng, 3.0) for n in runs(row)]
    assert np.mean(poisson) == pytest.approx(3.05, abs=0.12)  # E max(Poisson(3), 1), a little less for the cut
    geometric = [
        n for row in mask_spans([5000] * 300, 0.02, ExampleRNG.of(1, 0, 300), 5.0, "geometric") for n in runs(row)
    ]
    weights = 0.8 ** np.arange(10)
    assert np.mean(geometric) == pytest.approx((weights @ np.arange(1, 11)) / weights.sum(), abs=0.15)  # 3.8


def test_noise_spans_never_touch_and_are_as_many_as_t5_has():
    mask = mask_noise_spans([100] * 200, 0.15, ExampleRNG.of(0, 0, 200), 3.0)
    for row in mask:
        assert row.sum() == 15
        assert len(runs(row)) == 5
        assert not row[0]
        assert row[-1]
    assert mask_noise_spans([2, 1, 3], 0.9, ExampleRNG.of(0, 0, 3)).sum(1).tolist() == [1, 0, 2]


def test_time_spans_mask_about_half_and_something_of_everything():
    for exact in (False, True):
        mask = mask_time_spans([400] * 200, 0.065, 10, ExampleRNG.of(0, 0, 200), exact=exact)
        assert mask.float().mean().item() == pytest.approx(1 - 0.935**10, abs=0.02)  # 49 %, wav2vec 2.0 section 4.2
        assert min(n for row in mask[:, :-10] for n in runs(row)[:-1]) >= 10
        short = mask_time_spans([3, 1, 40], 0.0, 10, ExampleRNG.of(1, 0, 3), exact=exact)
        assert (short.sum(1) > 0).all()
        assert not mask_time_spans([30], 0.0, 10, ExampleRNG.of(1, 0, 1), min_spans=0, exact=exact).any()


def test_patches_of_all_images_are_masked_in_equal_number():
    assert mask_patches(196, 0.75, ExampleRNG.of(0, 0, 50)).sum(1).tolist() == [147] * 50


def test_tubes_mask_the_same_patches_of_all_frames():
    mask = mask_tubes(8, 196, 0.9, ExampleRNG.of(0, 0, 5)).unflatten(1, (8, 196))
    assert mask[:, 0].sum(1).tolist() == [176] * 5
    assert (mask == mask[:, :1]).all()


@pytest.mark.parametrize("grid", [14, (4, 12)])
def test_blocks_mask_rectangles_and_never_more_than_the_ratio(grid):
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    target = round(0.4 * rows * columns)
    mask = mask_blocks(grid, 0.4, ExampleRNG.of(0, 0, 200))
    assert mask.shape == (200, rows * columns)
    assert (mask.sum(1) <= target).all()
    assert mask.sum(1).float().mean() > 0.9 * target
    assert (mask_blocks(grid, 0.4, ExampleRNG.of(0, 0, 200), exact=True).sum(1) == target).all()
    # A masked patch's neighbor is masked far more often than if patches were masked one by one.
    image = mask.unflatten(1, (rows, columns))
    assert image[:, :, 1:][image[:, :, :-1]].float().mean() > 0.65
    assert not mask_blocks(grid, 0.0, ExampleRNG.of(0, 0, 3)).any()


def test_a_spectrogram_is_masked_by_patches_moments_or_bands():
    lengths, rng = [6, 4], ExampleRNG.of(0, 0, 2)
    assert mask_spectrogram(lengths, 5, 0.5, rng).sum(1).tolist() == [15, 10]
    time = mask_spectrogram(lengths, 5, 0.5, rng, "time").unflatten(1, (6, 5))
    assert time.all(2).sum(1).tolist() == [3, 2]
    assert torch.equal(time.all(2), time.any(2))
    bands = mask_spectrogram(lengths, 5, 0.4, rng, "frequency").unflatten(1, (6, 5))
    assert bands.sum((1, 2)).tolist() == [2 * 6, 2 * 4]
    assert bands[0].all(0).sum() == 2
    assert not bands[1, 4:].any()


def tokens_of(lengths, vocab_size=50):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (len(lengths), max(lengths)), generator=generator)
    return Tokens(ids, torch.tensor(lengths))


def test_whole_words_are_masked_with_all_their_tokens_and_marks_never():
    words = torch.tensor([[True, False, True], [False, True, False]])
    index = torch.tensor([[-1, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1]])
    assert expand_words(words, index).int().tolist() == [[0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 0]]
    every = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(expand_words(every, index), index >= 0)


def test_masks_over_content_move_behind_the_start_mark():
    tokens = tokens_of([5, 3, 2])
    mask = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    expected = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(expand_content(mask, tokens), expected)
    padded = F.pad(mask_spans([3, 1, 0], 0.6, ExampleRNG.of(0, 0, 3)), (1, 1))
    moved = expand_content(mask_spans([3, 1, 0], 0.6, ExampleRNG.of(0, 0, 3)), tokens)
    assert torch.equal(padded, moved)


def test_masked_tokens_are_replaced_kept_or_made_random_in_berts_proportions():
    tokens = tokens_of([102] * 200, vocab_size=1000)
    mask = torch.rand(200, 102, generator=torch.Generator().manual_seed(1)) < 0.5
    masked = mask_tokens(tokens, mask, 1000, ExampleRNG.of(0, 0, 200), vocab_size=1000)
    assert torch.equal(masked.mask, mask & tokens.content_mask)
    assert torch.equal(masked.targets, tokens.ids)
    given = masked.inputs.ids
    assert torch.equal(given[~masked.mask], tokens.ids[~masked.mask])
    given, targets = given[masked.mask], masked.masked_targets
    assert (given == 1000).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (given == targets).float().mean().item() == pytest.approx(0.1, abs=0.02)
    random = given[(given != 1000) & (given != targets)]
    assert len(random) / len(given) == pytest.approx(0.1, abs=0.02)
    assert random.float().mean().item() == pytest.approx(500, abs=40)
    assert torch.equal(masked.labels(), tokens.ids.masked_fill(~masked.mask, -100))


def test_replaced_tokens_do_not_depend_on_the_batch():
    tokens, rng = tokens_of([12, 30, 7]), ExampleRNG.of(0, 0, 3)
    whole = mask_tokens(tokens, tokens.content_mask, 50, rng, 50, 0.3, 0.3)
    alone = Tokens(tokens.ids[2:, :7], tokens.lengths[2:])
    again = mask_tokens(alone, alone.content_mask, 50, part(ExampleRNG.of(0, 0, 3), [2]), 50, 0.3, 0.3)
    assert torch.equal(again.inputs.ids, whole.inputs.ids[2:, :7])


def test_without_kept_and_random_tokens_all_are_mask_tokens_and_nothing_is_drawn():
    tokens, rng = tokens_of([9, 4]), ExampleRNG.of(0, 0, 2)
    masked = mask_tokens(tokens, tokens.content_mask, 50, rng, keep_prob=0.0, random_prob=0.0)
    assert torch.equal(masked.inputs.ids == 50, tokens.content_mask)
    assert rng.generators[0].random() == ExampleRNG.of(0, 0, 1).generators[0].random()


def test_masking_without_sense_is_an_error():
    tokens = tokens_of([9, 4])
    with pytest.raises(UserError, match="at most 1"):
        mask_tokens(tokens, tokens.content_mask, 50, ExampleRNG.of(0, 0, 2), 50, 0.6, 0.6)
    with pytest.raises(UserError, match="vocab_size"):
        mask_tokens(tokens, tokens.content_mask, 50, ExampleRNG.of(0, 0, 2))


def test_masked_values_are_one_value_and_targets_the_whole():
    values, mask = torch.randn(2, 5, 3), mask_patches(5, 0.4, ExampleRNG.of(0, 0, 2))
    masked = mask_values(values, mask, 9.0)
    assert (masked.inputs[mask] == 9).all()
    assert torch.equal(masked.inputs[~mask], values[~mask])
    assert torch.equal(masked.masked_targets, values[mask])
    assert isinstance(masked.to("cpu"), MaskedInput)


def test_visible_tokens_and_mask_tokens_are_put_back_in_order():
    x, mask = torch.arange(24.0).view(2, 12), mask_patches(12, 0.75, ExampleRNG.of(0, 0, 2))
    visible = visible_indices(mask)
    assert visible.shape == (2, 3)
    together = torch.cat([x.gather(1, visible), torch.full((2, 9), -1.0)], 1)
    assert torch.equal(together.gather(1, restore_indices(mask)), x.masked_fill(mask, -1.0))
    with pytest.raises(UserError, match="same number"):
        visible_indices(torch.tensor([[True, False], [False, False]]))


def test_masks_of_texts_leave_their_marks_and_what_stands_in_for_none() -> None:
    text, rng = Tokens.of([[1, *range(10, 10 + length), 2] for length in (8, 3)]), ExampleRNG.of(0, 0, 2)
    mask = mask_text_spans(text, 0.5, rng)
    assert mask.shape == text.ids.shape
    assert mask.sum(1).tolist() == [4, 2]
    assert not (mask & ~text.content_mask).any()
    empty = Tokens.of([[1, 2]])
    assert not mask_text_spans(empty, 0.5, ExampleRNG.of(0, 0, 0)).any()
    assert mask_time_spans([5], 0.5, 2, ExampleRNG.of(0, 0, 0)).tolist() == [[False] * 5]
    masked = mask_texts(text, 0.5, 99, ExampleRNG.of(0, 0, 2), keep_prob=0.0, random_prob=0.0)
    assert masked["masked_tokens"].sum(1).tolist() == [4, 2]
    assert torch.equal(masked["mlm_text"].ids == 99, masked["masked_tokens"])
