"""What images are generated from: a class, words, both, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.data.columns.label import LabelColumn, label_of
from polymodal.data.columns.text import TextColumn, TokenizerSource
from polymodal.data.processor import Declared, Optional
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG
from polymodal.types import Example


class ConditionBatch(TypedDict, total=False):
    """Conditions of generated images, whichever there are. label_shown, text_shown: False where dropped (CFG).

    num_images: of unconditional generation, in place of all conditions.
    """

    num_images: Int[Tensor, ""]
    label: Int[Tensor, " batch"]
    text: Tokens
    label_shown: Bool[Tensor, " batch"]
    text_shown: Bool[Tensor, " batch"]


class GenerationBatch(ConditionBatch):
    """Normalized images and the conditions that they are generated from."""

    image: Float[Tensor, "batch 3 size size"]


def condition_columns(names: Sequence[Literal["label", "text"]], text: TokenizerSource) -> Declared:
    """Return the columns of conditions, as far as a corpus has them. text: of the texts' tokenizer."""
    given = {"label": Optional(LabelColumn()), "text": Optional(TextColumn(text))}
    return {name: given[name] for name in dict.fromkeys(names)}


def condition_sizes(processor: Any) -> tuple[int, int]:
    """Return the number of classes and the vocabulary size of conditions, 0 where there are none."""
    label, text = (getattr(processor, name, None) for name in ("label", "text"))
    return len(label.names) if label else 0, text.tokenizer.vocab_size if text else 0


def generation_batch(
    examples: list[Example],
    processor: Any,
    augmentation: ImageAugmentation,
    cond_drop_prob: float,
    example_rng: ExampleRNG,
) -> GenerationBatch:
    """Collate augmented images, their conditions, and which of these are dropped."""
    image = processor.image.augmented([example["image"] for example in examples], augmentation, example_rng)
    batch: GenerationBatch = {"image": image, **conditions(processor, examples, example_rng.generators)}
    drop_conditions(batch, cond_drop_prob, example_rng)
    return batch


def conditions(
    processor: Any, examples: list[Example], generators: list[np.random.Generator] | None = None
) -> ConditionBatch:
    """Collate labels and texts of examples, whichever the processor has.

    generators: sample a caption of each, in place of the first.
    """
    given: dict[str, list[Any]] = {}
    text = getattr(processor, "text", None)
    if label_of(processor) is not None:
        given["label"] = [example["label"] for example in examples]
    if text is not None and generators is None:
        given["text"] = [example["text"][0].text for example in examples]
    elif text is not None:
        drawn = zip(examples, generators or (), strict=True)
        given["text"] = [text.sample_caption(example["text"], generator) for example, generator in drawn]
    return processor(**given) if given else {"num_images": torch.tensor(len(examples))}


def drop_conditions(batch: ConditionBatch, probability: float, example_rng: ExampleRNG) -> None:
    """Sample which examples train without their conditions, for classifier-free guidance.

    With both label and text, an example keeps only the text, only the label, or both, with probabilities of 1/4, 1/4
    and 1/2, so that each alone suffices for generation.
    """
    kept, which = example_rng.uniform() >= probability, example_rng.uniform()
    both = "label" in batch and "text" in batch
    if "label" in batch:
        batch["label_shown"] = kept & ~(both & (which < 0.25))
    if "text" in batch:
        batch["text_shown"] = kept & ~(both & (which > 0.75))
