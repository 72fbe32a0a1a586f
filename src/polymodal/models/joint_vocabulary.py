"""One vocabulary for text tokens and the discrete codes of other modalities, and how codes stand in a sequence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polymodal.data.conversation import IMAGE_END, IMAGE_START
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.sequence import TEXT
from polymodal.errors import UserError
from polymodal.modalities.text import Tokens


class CodeFormat(NamedTuple):
    """How an item of a modality stands in a sequence: `begin`, so many codes, `end`. begin, end: text tokens."""

    begin: int
    end: int
    num_codes: int

    @classmethod
    def of_images(cls, conversation: ConversationFormat, num_codes: int) -> CodeFormat:
        """Return that of images between their marks. Raises UserError where one leaves no room in the context."""
        conversation.check_fits(num_codes)
        begin, end = (conversation.marks[mark][-1] for mark in (IMAGE_START, IMAGE_END))
        return cls(begin, end, num_codes)


class JointVocabulary:
    """One vocabulary of all modalities: the entries of each follow those of the one before, text first."""

    def __init__(self, sizes: Mapping[str, int]):
        """sizes: entries of each modality, in order. Raises UserError where the first is not text."""
        if next(iter(sizes), None) != TEXT:
            raise UserError("A joint vocabulary begins with the entries of text.")
        self.sizes = dict(sizes)
        self.modalities = tuple(sizes)
        self.offsets = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
        self.total = sum(sizes.values())

    def slice_of(self, modality: str) -> slice:
        """The entries of a modality."""
        return slice(self.offsets[modality], self.offsets[modality] + self.sizes[modality])

    def encode(self, modality: str, codes: Int[Tensor, ...]) -> Int[Tensor, ...]:
        """Codes of a tokenizer to entries of the joint vocabulary."""
        return codes + self.offsets[modality]

    def decode(self, modality: str, ids: Int[Tensor, ...]) -> Int[Tensor, ...]:
        """Entries to codes of the modality's tokenizer."""
        return ids - self.offsets[modality]

    def modality_of(self, ids: Int[Tensor, ...]) -> Int[Tensor, ...]:
        """The index of each entry's modality."""
        bounds = torch.tensor([*self.offsets.values()][1:], device=ids.device)
        return torch.bucketize(ids, bounds, right=True)


def values_of_sides(values: Tensor, has_image: Bool[Tensor, " sides"]) -> Tensor:
    """Return what images have, such as codes, at the rows that have an image, and zeros at the others."""
    return values.new_zeros(len(has_image), *values.shape[1:]).index_copy(0, has_image.nonzero().squeeze(1), values)


def joined(codes: Tensor, text: Tensor, has_image: Bool[Tensor, " sides"]) -> Tensor:
    """Return rows of image codes and then text, or of text alone where there is no image.

    codes: (sides, codes). text: (sides, length). Both are token ids, or both are masks.
    """
    alone = torch.cat([text, torch.zeros_like(codes)], dim=1)
    return torch.where(has_image[:, None], torch.cat([codes, text], dim=1), alone)


def mask_of_sides(
    masked_codes: Bool[Tensor, "images codes"],
    masked_text: Bool[Tensor, "sides length"],
    has_image: Bool[Tensor, " sides"],
    sequences: Tokens,
) -> Bool[Tensor, "sides joint"]:
    """Return the mask of joint sequences; never of their end token, nor of padding. masked_codes: of each image."""
    mask = joined(values_of_sides(masked_codes, has_image), masked_text, has_image)[:, : sequences.ids.shape[1]]
    position = torch.arange(sequences.ids.shape[1], device=mask.device)
    return mask & (position < sequences.lengths[:, None] - 1)


def codes_before_text(
    codes: Int[Tensor, "sides codes"], text: Tokens, has_image: Bool[Tensor, " sides"], context_length: int
) -> Tokens:
    """Return joint sequences; where one is longer than the context, the end token is its last (FuseLIP)."""
    end = text.ids.gather(1, text.lengths[:, None] - 1)
    lengths = (text.lengths + has_image * codes.shape[1]).clamp(max=context_length)
    ids = joined(codes, text.ids, has_image)[:, : int(lengths.max())]
    last = torch.arange(ids.shape[1], device=ids.device) == lengths[:, None] - 1
    return Tokens(torch.where(last, end, ids), lengths)
