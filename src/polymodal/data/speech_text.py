"""Speech and texts, together or each by itself, to tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import (
    BaseColumn,
    ColumnsProcessor,
    LabelColumn,
    TextColumn,
    load_columns,
    read_available_columns,
    reject_unknown_columns,
)
from polymodal.errors import UnreadableExample
from polymodal.modalities import Audio, Category, Text
from polymodal.modalities.audio import log_mel
from polymodal.modalities.padding import Padded, pad
from polymodal.modalities.text import Tokenizer, Tokens
from polymodal.types import Batch, Example

SAMPLE = 300  # sounds whose frames are looked at for mean and spread


@dataclass(frozen=True)
class SoundColumn(BaseColumn):
    """Sounds as log-mel frames of 10 ms.

    rate: samples a second. longest: seconds; what comes after is left out. mean, std: of all values of the training
    sounds, which become 0 and 1.
    """

    num_mel_bins: int
    rate: int = 16_000
    max_audio_seconds: float = 30.0
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, corpus: Corpus, num_mel_bins: int, max_audio_seconds: float) -> SoundColumn:
        """With the mean and spread of the training sounds."""
        modality = corpus.columns[corpus.column_with(Audio)]
        assert isinstance(modality, Audio)
        plain, frames = cls(num_mel_bins, modality.rate, max_audio_seconds), []
        for row in corpus.sample("train", SAMPLE):
            with contextlib.suppress(UnreadableExample):  # the loader counts and names them
                frames.append(plain.load(corpus, int(row)))
        values = np.concatenate(frames) if frames else np.zeros((1, num_mel_bins), np.float32)
        mean, std = round(float(values.mean()), 4), round(max(float(values.std()), 0.1), 4)
        return cls(num_mel_bins, modality.rate, max_audio_seconds, mean, std)

    def load(self, corpus: Corpus, row: int) -> Float[np.ndarray, "frames bins"]:
        return self.frames(corpus.value(row, corpus.column_with(Audio)))

    def frames(self, waveform: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "frames bins"]:
        """Not yet standardised."""
        some = torch.from_numpy(waveform[: int(self.max_audio_seconds * self.rate)])
        return log_mel(some[None], self.rate, self.num_mel_bins)[0].numpy()

    def __call__(self, sounds: list[Any]) -> Padded:
        """sounds: arrays from `load`, waveforms at the rate, paths or encoded bytes."""
        opened = [sound if isinstance(sound, np.ndarray) and sound.ndim == 2 else self._open(sound) for sound in sounds]
        padded = pad(opened)
        return Padded((padded.values - self.mean) / self.std, padded.lengths)

    def _open(self, sound: Any) -> Float[np.ndarray, "frames bins"]:
        if isinstance(sound, np.ndarray):
            return self.frames(sound.astype(np.float32))
        if not isinstance(sound, bytes):
            try:
                sound = Path(sound).read_bytes()
            except OSError as error:
                raise UnreadableExample(f"{sound} cannot be read: {error.strerror or error}") from error
        return self.frames(Audio(self.rate, self.max_audio_seconds).decode(sound))


KINDS: dict[str, tuple[type, ...]] = {"sound": (Audio,), "text": (Text,), "label": (Category,)}


class SpeechTextProcessor(ColumnsProcessor):
    """Reads whatever an example has of `{"sound", "text", "label"}`, and makes batches of sounds and texts."""

    def __init__(self, sound: SoundColumn, text: TextColumn, label: LabelColumn | None = None):
        super().__init__(sound=sound, text=text, **({"label": label} if label else {}))
        self.sound = sound
        self.text = text
        self.label = label

    @classmethod
    def fit(
        cls, corpus: Corpus, num_mel_bins: int, max_audio_seconds: float, learn: Callable[[Iterable[str]], Tokenizer]
    ) -> SpeechTextProcessor:
        """Learn characters from the training texts, and the loudness of the training sounds."""
        label = LabelColumn.fit(corpus) if corpus.label else None
        return cls(SoundColumn.fit(corpus, num_mel_bins, max_audio_seconds), TextColumn.fit(corpus, learn), label)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> SpeechTextProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        kinds: dict[str, Any] = {"sound": SoundColumn, "text": partial(TextColumn, tokenizer), "label": LabelColumn}
        return cls(**load_columns(directory, **kinds))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def load_example(self, corpus: Corpus, row: int) -> Example:
        return read_available_columns(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        reject_unknown_columns(columns, ("sound", "text"))
        return {name: self.columns[name](values) for name, values in columns.items()}

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """The characters of token numbers, which have no marks."""
        return self.tokenizer.decode(Tokens.of([list(row) or [0] for row in rows]))
