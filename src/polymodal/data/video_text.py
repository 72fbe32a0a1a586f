"""What is sampled of examples of clips or images with texts and questions."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from polymodal.data.instructions import choice
from polymodal.data.processor import Processor
from polymodal.modalities.image_augmentation import ImageAugmentation, may_flip
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG
from polymodal.types import Example


def sample_pairs(
    examples: Sequence[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
) -> tuple[Float[Tensor, "batch frames 3 size size"], list[str]]:
    """Return frames of each clip, augmented alike, and one of its texts; an image is a clip of one frame."""
    clips = [example["video"] if "video" in example else example["image"][None] for example in examples]
    flip = may_flip([example["text"] for example in examples])
    video = processor.video.changed(clips, augmentation, example_rng, flip)
    return video, sample_captions(examples, processor, example_rng)


def sample_captions(examples: Sequence[Example], processor: Processor, example_rng: ExampleRNG) -> list[str]:
    """Return one of each example's captions."""
    pairs = zip(examples, example_rng.generators, strict=True)
    return [processor.text.sample_caption(example["text"], rng) for example, rng in pairs]


def sample_questions(
    examples: Sequence[Example], processor: Processor, example_rng: ExampleRNG
) -> tuple[Tokens, Int[Tensor, " batch"]]:
    """Return one of each example's questions, and the class of its answer."""
    pairs = zip(examples, example_rng.generators, strict=True)
    questions = [choice(example["questions"], rng) for example, rng in pairs]
    return processor.text([one.question for one in questions]), processor.questions([one.answer for one in questions])
