"""Batches of page images with their words: windows of words, and the fields of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.data.columns.words import random_windows
from polymodal.data.processor import Processor
from polymodal.modalities.document import PageTokens, Word
from polymodal.rng import ExampleRNG
from polymodal.types import Example


class PageImageBatch(TypedDict):
    image: Float[Tensor, "batch 3 size size"]


class PageBatch(PageImageBatch):
    words: PageTokens


class MaskedPageBatch(PageBatch):
    """masked_words, masked_patches: True where masked."""

    masked_words: Bool[Tensor, "batch length"]
    masked_patches: Bool[Tensor, "batch patches"]


class LabelledPageBatch(PageBatch):
    """fields: class of the field at the first token of each word, `columns.words.NO_FIELD` elsewhere."""

    fields: Int[Tensor, "batch length"]


def page_windows(
    examples: Sequence[Example], processor: Processor, max_words: int, example_rng: ExampleRNG
) -> tuple[list[list[Word]], PageBatch]:
    """Return a window of at most `max_words` words of each page, and its batch with the images."""
    pages = random_windows([example["words"] for example in examples], max_words, example_rng)
    return pages, processor(words=pages, image=[example["image"] for example in examples])


def labelled_pages(
    examples: Sequence[Example], processor: Processor, max_words: int, example_rng: ExampleRNG
) -> LabelledPageBatch:
    """Return a window of words of each page, its image, and the fields of the words."""
    pages, batch = page_windows(examples, processor, max_words, example_rng)
    return {**batch, "fields": processor.words.field_numbers(pages, batch["words"])}
