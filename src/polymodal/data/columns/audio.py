"""Audio as log-mel spectrograms."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import BaseColumn, Column
from polymodal.errors import UnreadableExample
from polymodal.modalities import Audio
from polymodal.modalities.audio import from_array, log_mel
from polymodal.modalities.padding import Padded, pad

FRAMES_PER_SECOND = 100
SAMPLE = 300  # training examples from which mean and standard deviation are computed


@dataclass(frozen=True)
class AudioColumn(BaseColumn):
    """Audio as log-mel spectrograms with frames of 10 ms.

    rate: sampling rate in Hz. max_audio_seconds: longer audio is truncated. mean, std: over all values of the training
    spectrograms, for normalization.
    """

    reads = (Audio,)
    num_mel_bins: int
    rate: int = 16_000
    max_audio_seconds: float = 30.0
    mean: float = 0.0
    std: float = 1.0

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> AudioColumn:
        """Learn the mean and standard deviation of the training spectrograms."""
        corpus = corpora[0]
        modality = corpus.columns[corpus.column_with(Audio)]
        assert isinstance(modality, Audio)
        plain, frames = dataclasses.replace(self, rate=modality.rate), []
        for row in corpus.sample("train", SAMPLE):
            with contextlib.suppress(UnreadableExample):  # the loader counts and names them
                frames.append(plain.load(corpus, int(row)))
        values = np.concatenate(frames) if frames else np.zeros((1, self.num_mel_bins), np.float32)
        mean, std = round(float(values.mean()), 4), round(max(float(values.std()), 0.1), 4)
        return dataclasses.replace(plain, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> Float[np.ndarray, "frames bins"]:
        return self.frames(corpus.value(row, corpus.column_with(Audio)))

    def is_cut_off(self, frames: Float[np.ndarray, "frames bins"], max_seconds: float = math.inf) -> bool:
        """Return whether a loaded sound reaches the maximum length, so that its end may be missing.

        max_seconds: maximum length of the corpus's modality, in seconds, at which decoding ends.
        """
        return len(frames) > int(FRAMES_PER_SECOND * min(self.max_audio_seconds, max_seconds))

    def frames(self, waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames bins"]:
        """Compute the log-mel spectrogram, not yet normalized."""
        some = torch.from_numpy(waveform[: int(self.max_audio_seconds * self.rate)])
        return log_mel(some[None], self.rate, self.num_mel_bins)[0].numpy()

    def __call__(self, sounds: list[Any]) -> Padded:
        """sounds: arrays from `load`, waveforms at the rate, paths or encoded bytes."""
        opened = [sound if isinstance(sound, np.ndarray) and sound.ndim == 2 else self._open(sound) for sound in sounds]
        padded = pad(opened)
        return Padded((padded.values - self.mean) / self.std, padded.lengths)

    def _open(self, sound: Any) -> Float[np.ndarray, "frames bins"]:
        if isinstance(sound, np.ndarray):
            return self.frames(from_array(sound))
        return self.frames(Audio(self.rate, self.max_audio_seconds).decode(sound))
