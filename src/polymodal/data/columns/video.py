"""Video clips, and images as clips of one frame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.data.columns.image import ImageColumn, color_statistics, normalize_pixels
from polymodal.modalities import Video
from polymodal.modalities.image import to_square
from polymodal.modalities.image_augmentation import ImageAugmentation, augment
from polymodal.modalities.video import Clip, sample_evenly
from polymodal.rng import ExampleRNG

Frames = UInt8[np.ndarray, "frames size size 3"]


@dataclass(frozen=True)
class VideoColumn(BaseColumn):
    """Clips of square, center-cropped frames.

    frames: number of frames that are sampled of a clip. size: side in pixels. mean, std: of red, green and blue on the
    scale 0-1, for normalization.
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
        """Load all frames that the corpus decodes of a clip, from which training samples."""
        return self._squares(corpus.value(row, corpus.column_with(Video)))

    def __call__(self, clips: list[Any]) -> Float[Tensor, "batch frames 3 size size"]:
        """clips: arrays from `load`, paths or encoded bytes; `frames` evenly spaced frames of each are used."""
        opened = [clip if isinstance(clip, np.ndarray) else self._open(clip) for clip in clips]
        return self.normalize(self.pixels([clip[sample_evenly(len(clip), self.frames)] for clip in opened]))

    def drawn(self, clip: Frames, rng: np.random.Generator) -> UInt8[np.ndarray, "some size size 3"]:
        """Sample one frame of each of `frames` equal segments."""
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
        """Sample frames of each clip (`drawn`) and augment them alike; for training."""
        pixels = self.pixels([self.drawn(clip, rng) for clip, rng in zip(clips, example_rng.generators, strict=True)])
        frames = pixels.shape[1]
        each = augment(
            pixels.flatten(0, 1), augmentation, example_rng.repeat(frames), may_flip.repeat_interleave(frames)
        )
        return self.normalize(each.unflatten(0, pixels.shape[:2]))

    def pixels(self, clips: Sequence[np.ndarray]) -> Float[Tensor, "batch frames 3 size size"]:
        """Return values on the scale 0-1. Clips shorter than the longest repeat frames."""
        num_frames = max(map(len, clips))
        alike = np.stack([clip[np.arange(num_frames) * len(clip) // num_frames] for clip in clips])
        return torch.from_numpy(alike).permute(0, 1, 4, 2, 3).float().div_(255)

    def normalize(self, pixels: Float[Tensor, "batch frames 3 size size"]) -> Float[Tensor, "batch frames 3 size size"]:
        """Normalize values on the scale 0-1 to mean 0 and standard deviation 1 over the training images."""
        return normalize_pixels(pixels.flatten(0, 1), self.mean, self.std).unflatten(0, pixels.shape[:2])

    def _squares(self, clip: Clip) -> Frames:
        return np.stack([to_square(PILImage.fromarray(frame), self.size) for frame in clip.frames])

    def _open(self, clip: Path | str | bytes) -> Frames:
        return self._squares(Video(self.frames).decode(str(clip) if isinstance(clip, Path) else clip))


class SingleFrameColumn(ImageColumn):
    """Images as clips of one frame, normalized like the column `video`."""

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> SingleFrameColumn:
        video = fitted["video"]
        assert isinstance(video, VideoColumn)
        return dataclasses.replace(self, mean=video.mean, std=video.std)

    def __call__(self, images: list[Any]) -> Float[Tensor, "batch 1 3 size size"]:
        return self.normalize(self.pixels(images))

    def normalize(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 1 3 size size"]:
        return super().normalize(pixels)[:, None]
