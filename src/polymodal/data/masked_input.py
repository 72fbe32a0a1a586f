"""What a model is given in place of an input with masked positions, and what it predicts at them.

One result type for all modalities (`MaskedInput`); `data/masks.py` chooses the positions.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.masks import expand_content, mask_random
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG

IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy's default


@dataclass(frozen=True)
class MaskedInput:
    """An input with masked positions, and what is predicted at them.

    inputs: what the model is given. targets: the values or token ids of all positions before masking. mask: True at
    the positions that are predicted, whatever the model is given there.
    """

    inputs: Tokens | Tensor
    targets: Tensor
    mask: Bool[Tensor, "batch length"]

    @property
    def ids(self) -> Int[Tensor, "batch length"]:
        """The token ids that the model is given."""
        assert isinstance(self.inputs, Tokens)
        return self.inputs.ids

    @property
    def masked_targets(self) -> Tensor:
        """The targets at the masked positions, example after example: (masked, ...)."""
        return self.targets[self.mask]

    def labels(self, ignore_index: int = IGNORE_INDEX) -> Int[Tensor, "batch length"]:
        """Return the target ids at masked positions and `ignore_index` elsewhere, as transformers' collators do."""
        return self.targets.masked_fill(~self.mask, ignore_index)

    def to(self, device: torch.device | str) -> MaskedInput:
        return MaskedInput(self.inputs.to(device), self.targets.to(device), self.mask.to(device))


def mask_tokens(
    tokens: Tokens,
    mask: Bool[Tensor, "batch length"],
    mask_id: int,
    rng: ExampleRNG,
    vocab_size: int = 0,
    keep_prob: float = 0.1,
    random_prob: float = 0.1,
) -> MaskedInput:
    """Replace masked tokens by the mask token, by a random token, or leave them (BERT, section 3.1 and appendix C.2).

    mask: of positions; marks at the start and the end and padding stay as they are. vocab_size: random tokens have ids
    below it. keep_prob, random_prob: probabilities of a masked token to be left and to be replaced by a random one; the
    mask token stands for all others. Raises UserError for probabilities that add up to more than 1, and for random
    tokens without a vocabulary.
    """
    if min(keep_prob, random_prob) < 0 or keep_prob + random_prob > 1:
        raise UserError(f"Probabilities to keep ({keep_prob:g}) and to replace ({random_prob:g}) add up to at most 1.")
    if random_prob and vocab_size < 1:
        raise UserError("Random tokens need a vocab_size of at least 1.")
    mask = mask & tokens.content_mask
    ids = tokens.ids.masked_fill(mask, mask_id)
    if keep_prob or random_prob:
        replacements, choices = tokens.ids.clone(), torch.ones(tokens.ids.shape, dtype=torch.float64)
        for row, content in enumerate(tokens.content_mask):
            generator, count = rng.generators[row], int(content.sum())
            choices[row, content] = torch.from_numpy(generator.random(count))
            if random_prob:
                replacements[row, content] = torch.from_numpy(generator.integers(vocab_size, size=count))
        kept = mask & (choices < keep_prob)
        random = mask & (choices >= keep_prob) & (choices < keep_prob + random_prob)
        ids = torch.where(random, replacements, torch.where(kept, tokens.ids, ids))
    return MaskedInput(dataclasses.replace(tokens, ids=ids), tokens.ids, mask)


class MaskedTexts(TypedDict):
    """mlm_text: what masked language modeling (MLM) is given. masked_tokens: True for tokens that it predicts."""

    mlm_text: Tokens
    masked_tokens: Bool[Tensor, "batch length"]


def mask_texts(
    text: Tokens,
    ratio: float,
    mask_id: int,
    rng: ExampleRNG,
    min_masked: int = 0,
    vocab_size: int = 0,
    keep_prob: float = 0.1,
    random_prob: float = 0.1,
) -> MaskedTexts:
    """Mask tokens of texts one by one, but not the marks at the start and the end, for MLM.

    ratio, min_masked: see `masks.mask_random`. mask_id, vocab_size, keep_prob, random_prob: see `mask_tokens`.
    """
    mask = expand_content(mask_random((text.lengths - 2).tolist(), ratio, rng, min_masked), text)
    masked = mask_tokens(text, mask, mask_id, rng, vocab_size, keep_prob, random_prob)
    return {"mlm_text": Tokens(masked.ids, text.lengths), "masked_tokens": masked.mask}


def mask_values(
    values: Float[Tensor, "batch length *dims"], mask: Bool[Tensor, "batch length"], value: float = 0.0
) -> MaskedInput:
    """Replace the masked patches or frames by one value, such as zero, as SimMIM and SpecAugment do.

    A method with a learned mask token, or one that does not encode masked positions (`visible_indices`), needs the
    mask alone.
    """
    return MaskedInput(values.masked_fill(mask.view(*mask.shape, *[1] * (values.ndim - 2)), value), values, mask)


def mask_tokens_by(
    tokens: Tokens,
    uniform: Float[Tensor, "batch length 3"],
    ratio: float,
    mask_id: int,
    vocab_size: int,
    mask_prob: float = 0.8,
    random_prob: float = 0.1,
) -> MaskedInput:
    """Mask tokens as BERT does, by given random numbers, for texts that are known on the device alone.

    Each content token is masked with probability `ratio`, and the one of the lowest number where none is. uniform:
    in [0, 1), for each position: whether it is masked; by what it is replaced; which random token. Positions beyond
    the length of `uniform` are not masked. mask_prob, random_prob: see `mask_tokens`; the others are kept.
    """
    missing = tokens.ids.shape[1] - uniform.shape[1]
    drawn = F.pad(uniform, (0, 0, 0, max(missing, 0)), value=1.0)[:, : tokens.ids.shape[1]]
    order = drawn[..., 0].masked_fill(~tokens.content_mask, 2.0)
    first = (order == order.amin(1, keepdim=True)) & (order < 1)
    mask = (order < ratio) | (first & ~(order < ratio).any(1, keepdim=True))
    ids = tokens.ids.masked_fill(mask & (drawn[..., 1] < mask_prob), mask_id)
    is_random = mask & (drawn[..., 1] >= mask_prob) & (drawn[..., 1] < mask_prob + random_prob)
    ids = torch.where(is_random, (drawn[..., 2] * vocab_size).long().clamp(max=vocab_size - 1), ids)
    return MaskedInput(dataclasses.replace(tokens, ids=ids), tokens.ids, mask)


class MaskedRegions(NamedTuple):
    """predicted: True for regions that are predicted. zeroed: True for those of them whose feature is zero."""

    predicted: Bool[Tensor, "batch regions"]
    zeroed: Bool[Tensor, "batch regions"]


def mask_regions(
    has_class: Bool[Tensor, "batch regions"],
    uniform: Float[Tensor, "batch regions 2"],
    ratio: float,
    keep_prob: float = 0.1,
) -> MaskedRegions:
    """Mask regions of images by given random numbers (masked region modeling, released code of M3P).

    Each region of a class other than the background is predicted with probability `ratio`, and the last region, as it
    is, where none would be. keep_prob: probability of a predicted region to keep its feature. uniform: in [0, 1).
    """
    predicted = has_class & (uniform[..., 0] < ratio)
    zeroed = predicted & (uniform[..., 1] >= keep_prob)
    none = ~predicted.any(1)
    last = torch.zeros_like(predicted)
    last[:, -1] = none
    return MaskedRegions(predicted | last, zeroed)
