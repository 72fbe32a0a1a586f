"""Columns of clips, of still images as clips, of answers from a list, and of regions."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import (
    MAX_ROWS,
    BaseColumn,
    Column,
    ImageColumn,
    PassThroughColumn,
    color_statistics,
    normalize_pixels,
)
from polymodal.modalities import Questions, Regions, Video
from polymodal.modalities.image import to_square
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.video import Clip, sample_evenly
from polymodal.rng import ExampleRNG

UNKNOWN = -100  # the number of an answer that is not in the list, which losses leave out
Frames = UInt8[np.ndarray, "frames size size 3"]


@dataclass(frozen=True)
class VideoColumn(BaseColumn):
    """Clips of square frames, whose centre is cut out.

    frames: of a clip that methods see. size: side in pixels. mean, std: of the red, green and blue values on the scale
    0-1, which become 0 and 1.
    """

    reads = (Video,)
    frames: int
    size: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> VideoColumn:
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

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
    """Images as clips of a single frame, with the colors of the column `video`."""

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> StillColumn:
        video = fitted["video"]
        assert isinstance(video, VideoColumn)
        return dataclasses.replace(self, mean=video.mean, std=video.std)

    def __call__(self, images: list[Any]) -> Float[Tensor, "batch 1 3 size size"]:
        return super().__call__(images)[:, None]


@dataclass(frozen=True)
class AnswersColumn(PassThroughColumn):
    """Questions about an example, and their answers as numbers.

    max_answers: how many are learned, the most frequent ones. answers: those that are known, the most frequent first.
    """

    reads = (Questions,)
    max_answers: int
    answers: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> AnswersColumn:
        """With the most frequent answers of the training split; none where it has no questions."""
        corpus = corpora[0]
        if not self.max_answers or not corpus.has_modality(Questions):
            return self
        column = corpus.column_with(Questions)
        stored = corpus.raw_values(corpus.sample("train", MAX_ROWS), column)
        asked = (question for raw in stored if raw is not None for question in corpus.columns[column].decode(raw))
        counts = Counter(question.answer for question in asked)
        return dataclasses.replace(self, answers=[answer for answer, _ in counts.most_common(self.max_answers)])

    def __call__(self, answers: list[str]) -> Int[Tensor, " batch"]:
        numbers = {name: number for number, name in enumerate(self.answers)}
        return torch.tensor([numbers.get(answer, UNKNOWN) for answer in answers])


@dataclass(frozen=True)
class RegionsColumn(PassThroughColumn):
    """Things in the first frame, and boxes as numbers.

    find_entities: gives the names of what a thing in a box may be, from a corpus. entities: these names.
    """

    reads = (Regions,)
    find_entities: Callable[[Corpus], Sequence[str]]
    entities: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> RegionsColumn:
        return dataclasses.replace(self, entities=list(self.find_entities(corpora[0])))

    def settings(self) -> dict[str, Any]:
        return {"entities": list(self.entities)}

    def __call__(self, boxes: list[tuple[float, ...]]) -> Float[Tensor, "batch 4"]:
        """boxes: left, top, right, bottom in shares of the square frame."""
        return torch.tensor(boxes)
