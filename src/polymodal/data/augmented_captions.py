"""Strongly augmented captions: views of texts for contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence

from polymodal.corpora._wordnet import wordnet
from polymodal.data.processor import Processor
from polymodal.modalities.text_augmentation import TextAugmentation, augment_text
from polymodal.rng import ExampleRNG
from polymodal.types import Example


def augmented_captions(
    examples: Sequence[Example], processor: Processor, augmentation: TextAugmentation, rng: ExampleRNG, count: int
) -> list[str]:
    """Return `count` views of each example: of all examples a caption each, augmented, one view after the other."""
    return [
        augment_text(processor.text.sample_caption(example["text"], generator), augmentation, generator, synonyms_of)
        for _ in range(count)
        for example, generator in zip(examples, rng.generators, strict=True)
    ]


def synonyms_of(word: str) -> list[str]:
    """Return the synonyms of a noun in its most frequent sense. Raises UserError without npm or network."""
    database = wordnet("--text-augmentation.synonym-weight")
    noun = database.noun(word.lower())
    return [] if noun is None else [synonym.replace("_", " ") for synonym in database.synonyms(noun)]
