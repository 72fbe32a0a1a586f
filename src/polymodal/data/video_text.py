"""What is sampled of examples of clips or images with texts and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from jaxtyping import Float, Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.instructions import choice
from polymodal.data.processor import Processor
from polymodal.errors import MissingModality
from polymodal.modalities import Image, Text, Video
from polymodal.modalities.image_augmentation import ImageAugmentation, may_flip
from polymodal.modalities.text import Caption, Tokens, text_ids
from polymodal.rng import ExampleRNG
from polymodal.types import Example


class VideoTextBatch(TypedDict):
    """group: id of each text (`modalities.text.text_ids`); equal texts are no negatives of each other."""

    video: Float[Tensor, "batch frames 3 size size"]
    text: Tokens
    group: Float[Tensor, " batch"]


class QuestionBatch(TypedDict, total=False):
    """answer: class of the answer to the question; both where the corpus has questions. `UNKNOWN_ANSWER`: none that
    is known."""

    question: Tokens
    answer: Int[Tensor, " batch"]


class FinetuneBatch(VideoTextBatch, QuestionBatch):
    """Pairs, and questions about the clips."""


def check_pairs(corpus: Corpus, recipe: str) -> None:
    """Raise UserError for a corpus with neither clips nor images, or without texts.

    recipe: the name of one that pre-trains on pairs and is fine-tuned on questions.
    """
    if not corpus.has_modality(Video):
        corpus.column_with(Image)
    if not corpus.has_modality(Text):
        message = (
            f"The corpus '{corpus.name}' has no captions: {recipe} pre-trains on clips or images with texts, and "
            "questions are for its fine-tuning alone; put captions beside them (captions_*.json of COCO, or a "
            f"column of texts), or train mono_internvl, which learns from questions alone.{corpus.hint}"
        )
        raise MissingModality(message, "text")


def sample_pairs(
    examples: Sequence[Example], processor: Processor, augmentation: ImageAugmentation, example_rng: ExampleRNG
) -> VideoTextBatch:
    """Return frames of each clip, augmented alike, and one of its texts; an image is a clip of one frame."""
    clips = [example["video"] if "video" in example else example["image"][None] for example in examples]
    flip = may_flip([example["text"] for example in examples])
    video = processor.video.changed(clips, augmentation, example_rng, flip)
    texts = sample_captions(examples, processor, example_rng)
    return {"video": video, "text": processor.text(texts), "group": text_ids(texts)}


def sample_captions(examples: Sequence[Example], processor: Processor, example_rng: ExampleRNG) -> list[str]:
    """Return one of each example's captions."""
    pairs = zip(examples, example_rng.generators, strict=True)
    return [processor.text.sample_caption(example["text"], rng) for example, rng in pairs]


def sample_texts(
    captions: Sequence[list[Caption]], processor: Processor, example_rng: ExampleRNG, count: int
) -> list[list[str]]:
    """Return `count` of each example's captions, with repetition; empty texts where it has none."""
    pairs = zip(captions, example_rng.generators, strict=True)
    return [[processor.text.sample_caption(some, rng) if some else "" for _ in range(count)] for some, rng in pairs]


def sample_questions(examples: Sequence[Example], processor: Processor, example_rng: ExampleRNG) -> QuestionBatch:
    """Return one of each example's questions, and the class of its answer; nothing where no answers are known.

    An example without questions has an empty one, whose answer is `UNKNOWN_ANSWER`.
    """
    if not processor.answers:
        return {}
    pairs = zip(examples, example_rng.generators, strict=True)
    questions = [choice(example["questions"], rng) if example.get("questions") else None for example, rng in pairs]
    answer = processor.questions(["" if one is None else one.answer for one in questions])
    answer[[one is None for one in questions]] = UNKNOWN_ANSWER
    return {"question": processor.text(["" if one is None else one.question for one in questions]), "answer": answer}
