"""Pairs of which each side is an image, a text, or both: captions, transformations, regions, questions (FuseLIP).

The pairs of an image are a group that stays together in a batch, where they are each other's hard negatives: the same
left image with another instruction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image as PILImage
from torch.nn import functional as F

from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.masks import mask_random
from polymodal.data.processor import Processor
from polymodal.modalities.image_transformations import FAMILIES, FAMILY_WEIGHTS, INSTRUCTIONS, transformations
from polymodal.modalities.question import Question
from polymodal.modalities.region import Region
from polymodal.modalities.text import Tokenizer
from polymodal.rng import ExampleRNG
from polymodal.types import Example

Pixels = UInt8[np.ndarray, "size size 3"]
REPEATS = 20  # of instructions among the texts that a tokenizer is learned from
THOUSANDTHS = 1000  # of the side of an image, in which boxes are


class Side(NamedTuple):
    """An image, a text, or both; a missing text is empty."""

    image: Pixels | None
    text: str = ""


class Pair(NamedTuple):
    """A query and what it asks for."""

    left: Side
    right: Side


@dataclass(frozen=True)
class InstructionTokenizer(LearnedTokenizer):
    """A tokenizer that is learned from captions and from the instructions of transformations."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        return super().tokenizer(itertools.chain(texts, INSTRUCTIONS * REPEATS))


def crop_of(image: Pixels, box: Sequence[float]) -> Pixels:
    """Crop a box and enlarge it to the size of the image. box: in thousandths of the side."""
    size = len(image)
    left, top, right, bottom = (edge * size / THOUSANDTHS for edge in box)
    edges = (int(left), int(top), max(round(right), int(left) + 1), max(round(bottom), int(top) + 1))
    return np.array(PILImage.fromarray(image).crop(edges).resize((size, size), PILImage.Resampling.BICUBIC))


def positional(regions: Sequence[Region]) -> list[tuple[str, int]]:
    """Return 'the left X' and 'the right X' with the number of the region: the outermost ones of an image.

    X is their name if both have the same, else 'object'. Empty where no two regions differ in their place.
    """
    centers = [region.box[0] + region.box[2] for region in regions]
    if not regions or min(centers) == max(centers):
        return []
    left, right = int(np.argmin(centers)), int(np.argmax(centers))
    name = regions[left].name if regions[left].name == regions[right].name else "object"
    return [(f"the left {name}", left), (f"the right {name}", right)]


def region_pairs(image: Pixels, regions: Sequence[Region], rng: np.random.Generator) -> list[Pair]:
    """Image and name, or place, of a region; and its crop. Names that several regions have are left out."""
    names = [region.name for region in regions]
    named = [(name, number) for number, name in enumerate(names) if names.count(name) == 1]
    places = positional(regions)
    selected = [[*places, *named][number] for number in rng.permutation(len(places) + len(named)).tolist()]
    return [Pair(Side(image, text), Side(crop_of(image, regions[number].box))) for text, number in selected]


def question_pairs(image: Pixels, questions: Sequence[Question], rng: np.random.Generator) -> list[Pair]:
    """Image and question, and its answer; an answer occurs once, as equal targets were each other's negatives."""
    shuffled = [questions[number] for number in rng.permutation(len(questions))]
    of_answer = {question.answer: question for question in reversed(shuffled)}
    return [Pair(Side(image, selected.question), Side(None, answer)) for answer, selected in of_answer.items()]


def transformation_pairs(image: Pixels, count: int, rng: np.random.Generator) -> list[Pair]:
    """Image and instruction, and the transformed image: of one family, then of others until there are so many.

    A family is sampled by its weight; all operations of an image differ.
    """
    weights = np.array([FAMILY_WEIGHTS[family] for family in FAMILIES])
    order = rng.choice(len(FAMILIES), size=len(FAMILIES), replace=False, p=weights / weights.sum())
    results: list[Pair] = []
    for number in order:
        made = transformations(image, FAMILIES[number], count - len(results), rng)
        results += [Pair(Side(one.source, one.instruction), Side(one.target)) for one in made]
    return results


def group_of(
    image: Pixels,
    caption: str,
    regions: Sequence[Region],
    questions: Sequence[Question],
    size: int,
    rng: np.random.Generator,
) -> list[Pair]:
    """Return `size` pairs of an image: its caption, and a source sampled from those that it has.

    Transformations fill up what regions or questions leave. size: at most 20.
    """
    # A region by its place and by its name has one target, and equal targets would be negatives of each other.
    of_target = {pair.right.image.tobytes(): pair for pair in region_pairs(image, regions, rng)}  # type: ignore[union-attr]
    sources = [[*of_target.values()], question_pairs(image, questions, rng)]
    kept = [pairs for pairs in sources if pairs] + [[]]  # the last one leaves all to transformations
    chosen = kept[int(rng.integers(len(kept)))][: size - 1]
    filled = transformation_pairs(image, size - 1 - len(chosen), rng) if len(chosen) < size - 1 else []
    return [Pair(Side(image), Side(None, caption)), *chosen, *filled]


def sample_groups(examples: Sequence[Example], processor: Processor, size: int, rng: ExampleRNG) -> list[Pair]:
    """Return the group of each example's image, one after the other, with one of its captions. size: of a group."""
    pairs = []
    for example, generator in zip(examples, rng.generators, strict=True):
        caption = processor.text.sample_caption(example["text"], generator)
        regions, questions = example.get("regions", ()), example.get("questions", ())
        pairs += group_of(example["image"], caption, regions, questions, size, generator)
    return pairs


def transformed(images: Sequence[Pixels], rng: ExampleRNG) -> list[Pixels]:
    """Return a transformation of each image."""
    pairs = [transformation_pairs(image, 1, one)[0] for image, one in zip(images, rng.generators, strict=True)]
    return [pair.right.image for pair in pairs if pair.right.image is not None]


def masked_sides(
    pairs: Sequence[Pair], processor: Processor, num_codes: int, probability: float, rng: ExampleRNG
) -> Any:
    """Collate the sides of pairs, all left ones before all right ones, and choose what is masked of each.

    Image codes are masked, and text tokens but for end token and padding. num_codes: of an image. rng: of the examples,
    each of which has as many pairs.
    """
    sides = [pair.left for pair in pairs] + [pair.right for pair in pairs]
    text = processor.text([side.text for side in sides])
    has_image = torch.tensor([side.image is not None for side in sides])
    per_example = 2 * len(pairs) // len(rng.seeds)
    # An example has its numbers in any batch; they are put in the order of the sides.
    of_sides = ExampleRNG(rng.split(per_example).seeds.reshape(-1, 2).T.flatten())
    of_images = ExampleRNG(of_sides.split(1).seeds[has_image.numpy()])
    words = mask_random((text.lengths - 1).tolist(), probability, of_sides, exact=False)
    return {
        "image": processor.image([side.image for side in sides if side.image is not None]),
        "has_image": has_image,
        "text": text,
        "masked_codes": mask_random([num_codes] * len(of_images.seeds), probability, of_images, exact=False),
        "masked_text": F.pad(words, (0, text.ids.shape[1] - words.shape[1])),
    }
