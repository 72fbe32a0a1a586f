"""Texts with phrases, each of which has boxes: captions, referring expressions, and prompts of names (GLIP, MDETR)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from polymodal.constraints import UnitInterval
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.expressions import XYXY
from polymodal.data.columns.regions import PhraseBox
from polymodal.data.processor import Processor
from polymodal.errors import MissingModality
from polymodal.modalities import Expressions, Questions, Regions
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.text import Tokenizer, Tokens, joined_pieces
from polymodal.rng import ExampleRNG
from polymodal.types import Example

NO_BOXES = "boxes, as named regions or referring expressions: for captions alone, write --coarse-fraction 1"
SEPARATOR = "."  # of the names of a prompt


class Phrase(NamedTuple):
    """A part of a text, and the boxes of what it names; none for words between phrases."""

    text: str
    boxes: tuple[XYXY, ...] = ()


def sample_phrases(
    examples: Sequence[Example],
    processor: Processor,
    example_rng: ExampleRNG,
    expression_fraction: float,
    num_negatives: int,
) -> list[list[Phrase]]:
    """Return a text with phrases for each example.

    It is a referring expression with probability `expression_fraction`, where there are both expressions and named
    regions; else equally often a caption with names of regions, if it has any, or a prompt of names and `num_negatives`
    others. Examples without either have an empty text.
    """
    pairs = zip(examples, example_rng.generators, strict=True)
    return [_phrases(example, rng, processor, expression_fraction, num_negatives) for example, rng in pairs]


def _phrases(
    example: Example, rng: np.random.Generator, processor: Processor, expression_fraction: float, num_negatives: int
) -> list[Phrase]:
    expressions, regions = example.get("expressions") or [], example.get("regions") or []
    if expressions and (not regions or rng.random() < expression_fraction):
        chosen = expressions[int(rng.integers(len(expressions)))]
        return [Phrase(chosen.text, chosen.boxes)]
    captions = [one for one in example.get("text") or [] if one.text]
    caption = caption_phrases(processor.text.sample_caption(captions, rng), regions) if captions else []
    if any(phrase.boxes for phrase in caption) and rng.random() < 0.5:
        return caption
    return prompt_phrases(regions, processor.regions.sample(num_negatives, rng) if regions else [], rng)


class PhraseTargets(NamedTuple):
    """Texts, the boxes of all their phrases, and the tokens of each box's phrase.

    spans: first token of the phrase, and the one after its last; values after an example's boxes have no meaning.
    """

    text: Tokens
    boxes: PaddedBoxes
    spans: Int[Tensor, "batch objects 2"]


def caption_phrases(caption: str, regions: Sequence[PhraseBox]) -> list[Phrase]:
    """Split a caption at the names of regions that it has, as whole words; longer names first."""
    phrases, boxes = [Phrase(caption)], boxes_by_name(regions)
    for name in sorted(boxes, key=len, reverse=True):
        pattern = re.compile(rf"\b{re.escape(name)}\b", re.IGNORECASE)
        split: list[Phrase] = []
        for phrase in phrases:
            match = None if phrase.boxes else pattern.search(phrase.text)
            if match is None:
                split.append(phrase)
            else:
                before, after = phrase.text[: match.start()], phrase.text[match.end() :]
                split += [Phrase(before.strip()), Phrase(name, boxes[name]), Phrase(after.strip())]
        phrases = split
    return [phrase for phrase in phrases if phrase.text]


def prompt_phrases(regions: Sequence[PhraseBox], negatives: Sequence[str], rng: np.random.Generator) -> list[Phrase]:
    """Join the names of regions and of what is not in the image to a prompt, "cat . bus . pear .", in random order."""
    boxes = boxes_by_name(regions)
    names = [*boxes, *(name for name in dict.fromkeys(negatives) if name not in boxes)]
    ordered = [names[place] for place in rng.permutation(len(names))]
    return [part for name in ordered for part in (Phrase(name, boxes.get(name, ())), Phrase(SEPARATOR))]


def boxes_by_name(regions: Sequence[PhraseBox]) -> dict[str, tuple[XYXY, ...]]:
    """Return the boxes of each name, in the order of their first."""
    boxes: dict[str, tuple[XYXY, ...]] = {}
    for region in regions:
        boxes[region.phrase] = (*boxes.get(region.phrase, ()), region.box)
    return boxes


def phrase_targets(texts: Sequence[list[Phrase]], tokenizer: Tokenizer) -> PhraseTargets:
    """Tokenize texts, and find the tokens of each box's phrase: all of its sub-words, and no separator.

    Boxes of phrases that are beyond the context length are left out.
    """
    text, part = joined_pieces([[phrase.text for phrase in phrases] or [""] for phrases in texts], tokenizer)
    boxes: list[list[XYXY]] = []
    spans: list[list[tuple[int, int]]] = []
    for phrases, numbers in zip(texts, part, strict=True):
        places = [(numbers == number).nonzero().flatten().tolist() for number in range(len(phrases))]
        kept = [
            (box, (place[0], place[-1] + 1))
            for phrase, place in zip(phrases, places, strict=True)
            if place
            for box in phrase.boxes
        ]
        boxes.append([box for box, _ in kept])
        spans.append([span for _, span in kept])
    padded = PaddedBoxes.of(boxes)
    rows = [of_example + [(0, 0)] * (padded.boxes.shape[1] - len(of_example)) for of_example in spans]
    return PhraseTargets(text, padded, torch.tensor(rows))


def rows_with(corpus: Corpus, *kinds: type) -> np.ndarray:
    """Return the training rows that have a value of one of these modalities."""
    rows = corpus.rows("train")
    columns = [name for name, modality in corpus.columns.items() if isinstance(modality, kinds)]
    values = [[bool(raw) for raw in corpus.raw_values(rows, column)] for column in columns]
    return rows[np.any(values, axis=0)] if values else rows[:0]


@dataclass(frozen=True)
class GroundedRows:
    """Rows of the stages of a recipe that learns from boxes and from questions, by the names that stages give."""

    box_fraction: UnitInterval = 1.0
    """Fraction of the images with boxes that are used: always the same ones, at least one."""

    def grounded_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the training rows with referring expressions or regions, a fraction of them."""
        rows = rows_with(corpus, Expressions, Regions)
        kept = np.random.default_rng(0).permutation(len(rows))[: max(round(self.box_fraction * len(rows)), 1)]
        return rows[np.sort(kept)]

    def question_rows(self, corpus: Corpus, processor: Processor) -> np.ndarray:
        """Return the training rows with questions."""
        return rows_with(corpus, Questions)


def require_boxes(corpus: Corpus, boxes: bool, questions: bool) -> None:
    """Raise MissingModality where a corpus has no boxes, or no questions, of those that stages learn from."""
    if boxes:
        require_any(corpus, (Expressions, Regions), NO_BOXES)
    if questions:
        require_any(corpus, (Questions,), "questions")


def require_any(corpus: Corpus, kinds: Sequence[type], what: str) -> None:
    """Raise MissingModality where a corpus has none of these modalities. what: their name, then what to do."""
    if not any(map(corpus.has_modality, kinds)):
        raise MissingModality(f"The corpus '{corpus.name}' has no {what}.{corpus.hint}", what.partition(",")[0])
