"""Masks of masked modelling, over text, image patches, video and audio.

A mask is True at the positions that are masked and predicted. Every function takes the random numbers from the
streams of the examples (`polymodal.rng`), so that an example's mask does not depend on the batch that it is in.
`data/masked_input.py` has what is done to the input at the masked positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.modalities.document import BOX_SCALE
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG

MIN_ASPECT, MAX_ASPECT = 0.3, 1 / 0.3  # height to width of a block (BEiT, algorithm 1)
MAX_ATTEMPTS = 20  # that place no new block, after which a mask stays as it is


def mask_random(
    lengths: Sequence[int], ratio: float, rng: ExampleRNG, min_masked: int = 0, exact: bool = True
) -> Bool[Tensor, "batch length"]:
    """Mask positions one by one, independently of each other.

    lengths: of the sequences, in tokens, words or frames. exact: whether round(ratio * length) positions of each are
    masked (BERT's data), or each with a probability of `ratio` (transformers' collator). min_masked: positions that are
    masked at least, as far as there are so many.
    """

    def positions(length: int, generator: np.random.Generator) -> np.ndarray:
        if not exact:
            chosen = np.flatnonzero(generator.random(length) < ratio)
            if len(chosen) >= min_masked:
                return chosen
        return generator.permutation(length)[: max(round(ratio * length) if exact else 0, min_masked)]

    return _masks(lengths, rng, positions)


def mask_spans(
    lengths: Sequence[int],
    ratio: float,
    rng: ExampleRNG,
    mean_length: float = 3.0,
    distribution: Literal["poisson", "geometric"] = "poisson",
    max_length: int = 10,
) -> Bool[Tensor, "batch length"]:
    """Mask spans at random positions until round(ratio * length) positions are masked; the last span is cut to that.

    lengths: of the sequences, in whatever is masked as a whole, such as words (`expand_words`). distribution: of the
    length of a span: Poisson, at least 1 (BART; LayoutLMv3, mean 3), or geometric with p = 1 / mean_length, of at most
    `max_length` (SpanBERT, section 3.1: p = 0.2 and 10).
    """
    probabilities = (1 - 1 / mean_length) ** np.arange(max_length) if distribution == "geometric" else np.ones(1)
    probabilities = probabilities / probabilities.sum()

    def positions(length: int, generator: np.random.Generator) -> np.ndarray:
        row, missing = np.zeros(length, dtype=bool), round(ratio * length)
        while missing > 0:
            if distribution == "geometric":
                span = 1 + int(generator.choice(max_length, p=probabilities))
            else:
                span = max(int(generator.poisson(mean_length)), 1)
            span = min(span, missing)
            start = int(generator.integers(length - span + 1))
            missing -= span - int(row[start : start + span].sum())
            row[start : start + span] = True
        return np.flatnonzero(row)

    return _masks(lengths, rng, positions)


def mask_text_spans(
    text: Tokens, ratio: float, rng: ExampleRNG, mean_length: float = 3.0
) -> Bool[Tensor, "batch length"]:
    """Mask spans of tokens (`mask_spans`), but not the marks at the start and the end.

    rng: of the texts; of none where a text stands in for none, of which nothing is masked.
    """
    if not len(rng.seeds):
        return torch.zeros_like(text.ids, dtype=torch.bool)
    return F.pad(mask_spans((text.lengths - 2).tolist(), ratio, rng, mean_length), (1, 1))


def mask_noise_spans(
    lengths: Sequence[int], ratio: float, rng: ExampleRNG, mean_length: float = 3.0
) -> Bool[Tensor, "batch length"]:
    """Mask round(masked / mean_length) spans that never touch, of random lengths (T5, `random_spans_noise_mask`).

    A sequence begins with a span that is not masked, and ends with a masked one. Sequences of one position are not
    masked; of others at least one position is masked and one is not.
    """

    def segments(total: int, count: int, generator: np.random.Generator) -> np.ndarray:
        """Lengths, at least 1 each, of so many segments; every division is equally likely."""
        cuts = np.sort(generator.permutation(total - 1)[: count - 1]) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))

    def positions(length: int, generator: np.random.Generator) -> np.ndarray:
        if length < 2:
            return np.zeros(0, dtype=int)
        masked = min(max(round(ratio * length), 1), length - 1)
        count = min(max(round(masked / mean_length), 1), length - masked, masked)
        pairs = zip(segments(length - masked, count, generator), segments(masked, count, generator), strict=True)
        lengths_in_turn = [span for pair in pairs for span in pair]
        return np.flatnonzero(np.repeat(np.arange(2 * count) % 2 == 1, lengths_in_turn))

    return _masks(lengths, rng, positions)


def mask_time_spans(
    lengths: Sequence[int],
    start_prob: float,
    span_length: int,
    rng: ExampleRNG,
    min_spans: int = 1,
    exact: bool = False,
) -> Bool[Tensor, "batch length"]:
    """Mask spans of a fixed length, which may overlap (wav2vec 2.0, section 3.1: p = 0.065 and 10 frames).

    start_prob: that a position begins a span; transformers' `mask_time_prob` is start_prob * span_length. min_spans: of
    each sequence. exact: whether a sequence has start_prob * length spans, rounded up or down at random, which begin
    where they do not reach over its end (the released code), or every position decides by itself (the paper). rng: of
    the sequences; of none where a sequence stands in for none, of which nothing is masked.
    """
    if not len(rng.seeds):
        return torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.bool)

    def positions(length: int, generator: np.random.Generator) -> np.ndarray:
        if exact:
            span = min(span_length, length)
            count = max(int(start_prob * length + generator.random()), min_spans)
            starts = generator.permutation(length - span + 1)[:count]
        else:
            starts = np.flatnonzero(generator.random(length) < start_prob)
            if len(starts) < min_spans:
                starts = generator.integers(length, size=min_spans) if length else starts
        covered = starts[:, None] + np.arange(span_length)
        return covered[covered < length]

    return _masks(lengths, rng, positions)


def mask_patches(num_patches: int, ratio: float, rng: ExampleRNG) -> Bool[Tensor, "batch patches"]:
    """Mask the same number of patches, round(ratio * num_patches), of every example at random (MAE, section 3)."""
    return mask_random([num_patches] * len(rng.seeds), ratio, rng)


def sample_visible(num_patches: int, count: int, rng: ExampleRNG) -> Int[Tensor, "batch count"]:
    """Sample the `count` patches of every example that an encoder sees (patch dropping, FLIP, section 3)."""
    return visible_indices(mask_patches(num_patches, 1 - count / num_patches, rng))


def mask_tubes(frames: int, num_patches: int, ratio: float, rng: ExampleRNG) -> Bool[Tensor, "batch tokens"]:
    """Mask the same patches in all frames (VideoMAE, section 3.2); tokens are frame after frame.

    frames: of the encoder's tokens, such as half of the video's for tubelets of two frames. num_patches: of a frame.
    """
    return mask_patches(num_patches, ratio, rng).repeat(1, frames)


def mask_blocks(
    grid: int | tuple[int, int], ratio: float, rng: ExampleRNG, min_area: float = 16 / 196, exact: bool = False
) -> Bool[Tensor, "batch patches"]:
    """Mask rectangles of patches until about round(ratio * patches) are masked, never more (BEiT, algorithm 1).

    grid: patches along a side, or rows and columns; patches are in reading order. min_area: of a rectangle, as a
    fraction of the grid, while as much is still to be masked. exact: whether single patches make up what no rectangle
    had room for, so that all examples have the same number of masked patches.
    """
    rows, columns = (grid, grid) if isinstance(grid, int) else grid

    def positions(length: int, generator: np.random.Generator) -> np.ndarray:
        image, missing, attempts = np.zeros((rows, columns), dtype=bool), round(ratio * length), 0
        while missing > 0 and attempts < MAX_ATTEMPTS:
            area = generator.uniform(min(min_area * length, missing), missing)
            aspect = math.exp(generator.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
            height = min(max(round(math.sqrt(area * aspect)), 1), rows)
            width = min(max(round(math.sqrt(area / aspect)), 1), columns)
            top, left = int(generator.integers(rows - height + 1)), int(generator.integers(columns - width + 1))
            block = image[top : top + height, left : left + width]
            new = block.size - int(block.sum())
            if 0 < new <= missing:
                block[:] = True
                missing -= new
            else:
                attempts += 1
        if exact and missing > 0:
            image.flat[generator.permutation(np.flatnonzero(~image))[:missing]] = True
        return np.flatnonzero(image)

    return _masks([rows * columns] * len(rng.seeds), rng, positions)


def mask_spectrogram(
    lengths: Sequence[int],
    num_bands: int,
    ratio: float,
    rng: ExampleRNG,
    axis: Literal["both", "time", "frequency"] = "both",
) -> Bool[Tensor, "batch tokens"]:
    """Mask patches of spectrograms: any of them, whole moments, or whole frequency bands (AudioMAE, section 3).

    lengths: of the sounds, in patches along time. num_bands: patches along frequency; a moment's are next to each
    other. Masks of time and of frequency together are the union of two (`|`).
    """
    if axis == "both":
        return mask_random([length * num_bands for length in lengths], ratio, rng)
    if axis == "time":
        return mask_random(lengths, ratio, rng).repeat_interleave(num_bands, 1)
    bands = mask_random([num_bands] * len(lengths), ratio, rng)
    real = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.long)[:, None]
    return (real[:, :, None] & bands[:, None, :]).flatten(1)


def expand_words(
    mask: Bool[Tensor, "batch words"], word_index: Int[Tensor, "batch length"]
) -> Bool[Tensor, "batch length"]:
    """Mask all tokens of masked words (whole-word masking).

    word_index: the number of the word that each token is a piece of, -1 for tokens of none, such as marks and padding.
    """
    padded = F.pad(mask, (0, 1))
    return padded.gather(1, word_index.where(word_index >= 0, mask.shape[1]))


def expand_content(mask: Bool[Tensor, "batch words"], tokens: Tokens) -> Bool[Tensor, "batch length"]:
    """Move a mask over the tokens without the marks at the start and the end to the positions of all tokens.

    Its lengths are `(tokens.lengths - 2).tolist()`.
    """
    content = tokens.content_mask
    order = (content.cumsum(1) - 1).clamp(min=0)
    return F.pad(mask, (0, max(0, int(order.max()) + 1 - mask.shape[1]))).gather(1, order) & content


def visible_indices(mask: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch visible"]:
    """Return the positions that are not masked, in order, for encoders that see nothing else (MAE, section 3).

    Raises UserError where examples have different numbers of them.
    """
    visible = (~mask).sum(1)
    if len(visible) and int(visible.min()) != int(visible.max()):
        raise UserError("Encoding visible positions alone needs the same number of masked positions in all examples.")
    return (~mask).nonzero()[:, 1].view(len(mask), -1)


def restore_indices(mask: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Return, for each position, its index among the visible positions followed by the masked ones.

    torch.cat([visible tokens, mask tokens], 1).gather(1, indices) puts all tokens back in order (MAE's `ids_restore`).
    """
    return mask.long().argsort(stable=True, dim=1).argsort(1)


def _masks(
    lengths: Sequence[int], rng: ExampleRNG, positions: Callable[[int, np.random.Generator], np.ndarray]
) -> Bool[Tensor, "batch length"]:
    """Collect the masked positions of each sequence, which its own generator chooses."""
    mask = np.zeros((len(lengths), max(lengths, default=0)), dtype=bool)
    for row, length, generator in zip(mask, lengths, rng.generators, strict=True):
        row[positions(length, generator)] = True
    return torch.from_numpy(mask)


def patch_range(boxes: Int[Tensor, "... 4"], grid: int) -> tuple[Int[Tensor, "... 2"], Int[Tensor, "... 2"]]:
    """Return column and row of the first and of the last patch that a box touches. boxes: in thousandths of the page.

    An empty box touches the patch of its corner.
    """
    first = (boxes[..., :2] * grid // BOX_SCALE).clamp(max=grid - 1)
    last = ((boxes[..., 2:] - 1).maximum(boxes[..., :2]) * grid // BOX_SCALE).clamp(max=grid - 1)
    return first, last


def in_masked_patch(
    boxes: Int[Tensor, "batch length 4"], masked: Bool[Tensor, "batch patches"], grid: int
) -> Bool[Tensor, "batch length"]:
    """Return True for boxes that touch a masked patch. boxes: in thousandths of the page."""
    first, last = patch_range(boxes, grid)
    # Summed-area table: the number of masked patches in a rectangle follows from its four corners.
    sums = F.pad(masked.unflatten(1, (grid, grid)).long().cumsum(1).cumsum(2), (1, 0, 1, 0))
    page = torch.arange(len(boxes), device=boxes.device)[:, None]
    (left, top), (right, bottom) = first.unbind(-1), (last + 1).unbind(-1)
    inside = sums[page, bottom, right] - sums[page, top, right] - sums[page, bottom, left] + sums[page, top, left]
    return inside > 0
