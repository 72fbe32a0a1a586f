"""Clips or still images, texts, and questions with answers from a list, to tensors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import (
    MOST_ROWS,
    BaseColumn,
    ColumnsProcessor,
    ImageColumn,
    PassThroughColumn,
    TextColumn,
    color_statistics,
    load_columns,
    normalize_pixels,
    read_available_columns,
    reject_unknown_columns,
)
from polymodal.modalities import Image, Questions, Regions, Text, Video
from polymodal.modalities.image import to_square
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.text import Tokenizer
from polymodal.modalities.video import Clip, sample_evenly
from polymodal.rng import ExampleRNG
from polymodal.types import Batch, Example

UNKNOWN = -100  # the number of an answer that is not in the list, which losses leave out
Frames = UInt8[np.ndarray, "frames size size 3"]


@dataclass(frozen=True)
class VideoColumn(BaseColumn):
    """Clips of square frames, whose centre is cut out.

    frames: of a clip that methods see. size: side in pixels. mean, std: of the red, green and blue values on the scale
    0-1, which become 0 and 1.
    """

    frames: int
    size: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def load(self, corpus: Corpus, row: int) -> Frames:
        """All frames that the corpus decodes of a clip, so that training can draw some."""
        return self._squares(corpus.value(row, corpus.column_with(Video)))

    def __call__(self, clips: list[Any]) -> Float[Tensor, "batch frames 3 size size"]:
        """clips: arrays from `load`, paths or encoded bytes; evenly chosen frames of each are seen."""
        opened = [clip if isinstance(clip, np.ndarray) else self._open(clip) for clip in clips]
        return self.normalize(self.pixels([clip[sample_evenly(len(clip), self.frames)] for clip in opened]))

    def drawn(self, clip: Frames, rng: np.random.Generator) -> UInt8[np.ndarray, "some size size 3"]:
        """One frame at random of each of equal stretches."""
        ends = np.linspace(0, len(clip), min(self.frames, len(clip)) + 1)
        stretches = itertools.pairwise(ends.astype(int).tolist())
        return clip[[int(rng.integers(start, end)) for start, end in stretches]]

    def changed(
        self,
        clips: Sequence[np.ndarray],
        augmentation: ImageAugmentation,
        example_rng: ExampleRNG,
        may_flip: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch some 3 size size"]:
        """Frames at random (`drawn`) of each clip, all changed at random in the same way; for training."""
        pixels = self.pixels([self.drawn(clip, rng) for clip, rng in zip(clips, example_rng.generators, strict=True)])
        frames = pixels.shape[1]
        each = augment(
            pixels.flatten(0, 1), augmentation, example_rng.repeat(frames), may_flip.repeat_interleave(frames)
        )
        return self.normalize(each.unflatten(0, pixels.shape[:2]))

    def pixels(self, clips: Sequence[np.ndarray]) -> Float[Tensor, "batch frames 3 size size"]:
        """Values on the scale 0-1. A clip with fewer frames than the longest shows some of them more than once."""
        longest = max(map(len, clips))
        alike = np.stack([clip[np.arange(longest) * len(clip) // longest] for clip in clips])
        return torch.from_numpy(alike).permute(0, 1, 4, 2, 3).float().div_(255)

    def normalize(self, pixels: Float[Tensor, "batch frames 3 size size"]) -> Float[Tensor, "batch frames 3 size size"]:
        """Scale 0-1 to mean 0 and standard deviation 1 over the training images."""
        return normalize_pixels(pixels.flatten(0, 1), self.mean, self.std).unflatten(0, pixels.shape[:2])

    def _squares(self, clip: Clip) -> Frames:
        return np.stack([to_square(PILImage.fromarray(frame), self.size) for frame in clip.frames])

    def _open(self, clip: Path | str | bytes) -> Frames:
        return self._squares(Video(self.frames).decode(str(clip) if isinstance(clip, Path) else clip))


class StillColumn(ImageColumn):
    """Images as clips of a single frame."""

    def __call__(self, images: list[Any]) -> Float[Tensor, "batch 1 3 size size"]:
        return super().__call__(images)[:, None]


@dataclass(frozen=True)
class AnswersColumn(PassThroughColumn):
    """Questions about an example, and their answers as numbers. names: the answers that are known, commonest first."""

    kind = Questions
    names: Sequence[str]

    @classmethod
    def fit(cls, corpus: Corpus, most: int) -> AnswersColumn:
        """The commonest answers of the training split, at most so many; none where it has no questions."""
        if not most or not corpus.has_modality(Questions):
            return cls([])
        column = corpus.column_with(Questions)
        stored = corpus.raw_values(corpus.sample("train", MOST_ROWS), column)
        asked = (question for raw in stored if raw is not None for question in corpus.columns[column].decode(raw))
        return cls([answer for answer, _ in Counter(question.answer for question in asked).most_common(most)])

    def __call__(self, answers: list[str]) -> Int[Tensor, " batch"]:
        numbers = {name: number for number, name in enumerate(self.names)}
        return torch.tensor([numbers.get(answer, UNKNOWN) for answer in answers])


@dataclass(frozen=True)
class RegionsColumn(PassThroughColumn):
    """Things in the first frame, and boxes as numbers. names: what a thing in a box may be."""

    kind = Regions
    names: Sequence[str]

    def __call__(self, boxes: list[tuple[float, ...]]) -> Float[Tensor, "batch 4"]:
        """boxes: left, top, right, bottom in shares of the square frame."""
        return torch.tensor(boxes)


KINDS: dict[str, tuple[type, ...]] = {
    "video": (Video,),
    "image": (Image,),
    "text": (Text,),
    "questions": (Questions,),
    "regions": (Regions,),
}
# What a batch is made of -> the column that makes it.
MADE_BY = {
    "video": "video",
    "image": "image",
    "text": "text",
    "question": "text",
    "answer": "questions",
    "box": "regions",
}


class VideoTextProcessor(ColumnsProcessor):
    """Reads whatever an example has of `{"video", "image", "text", "questions", "regions"}`.

    An image is a clip of one frame. Batches are made of clips, images, texts, questions with answers, and boxes.
    """

    def __init__(self, video: VideoColumn, text: TextColumn, questions: AnswersColumn, regions: RegionsColumn):
        still = StillColumn(video.size, video.mean, video.std)
        super().__init__(video=video, image=still, text=text, questions=questions, regions=regions)
        self.video = video
        self.text = text
        self.answers = questions.names
        self.entities = regions.names

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        frames: int,
        size: int,
        learn: Callable[[Iterable[str]], Tokenizer],
        num_answers: int,
        entities: Sequence[str] = (),
    ) -> VideoTextProcessor:
        """Learn a tokenizer from captions of the training split, the colours of its images, and its answers.

        frames, size: of a clip. answers: the most that are learned. entities: names of what a thing may be.
        """
        text = TextColumn.fit(corpus, learn)
        video = VideoColumn(frames, size, *color_statistics(corpus))
        return cls(video, text, AnswersColumn.fit(corpus, num_answers), RegionsColumn(list(entities)))

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> VideoTextProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        kinds: dict[str, Any] = {"video": VideoColumn, "questions": AnswersColumn, "regions": RegionsColumn}
        return cls(**load_columns(directory, text=partial(TextColumn, tokenizer), **kinds))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def load_example(self, corpus: Corpus, row: int) -> Example:
        return read_available_columns(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        reject_unknown_columns(columns, MADE_BY)
        return {name: self.columns[MADE_BY[name]](values) for name, values in columns.items()}
