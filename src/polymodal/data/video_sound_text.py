"""Clips with their sound and texts, to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import ColumnsProcessor, TextColumn, color_statistics, load_columns
from polymodal.data.speech_text import SoundColumn
from polymodal.data.video_text import VideoColumn
from polymodal.modalities.text import Tokenizer


class VideoSoundTextProcessor(ColumnsProcessor):
    """Reads examples as `{"video": frames, "sound": log-mel frames, "text": captions}`; each has all three."""

    def __init__(self, video: VideoColumn, sound: SoundColumn, text: TextColumn):
        super().__init__(video=video, sound=sound, text=text)
        self.video = video
        self.sound = sound
        self.text = text

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        frames: int,
        size: int,
        num_mel_bins: int,
        max_audio_seconds: float,
        learn: Callable[[Iterable[str]], Tokenizer],
    ) -> VideoSoundTextProcessor:
        """frames, size: of a clip. bins, longest: of a sound, in mel bins and seconds."""
        video = VideoColumn(frames, size, *color_statistics(corpus))
        return cls(video, SoundColumn.fit(corpus, num_mel_bins, max_audio_seconds), TextColumn.fit(corpus, learn))

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> VideoSoundTextProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        kinds: dict[str, Any] = {"video": VideoColumn, "sound": SoundColumn, "text": partial(TextColumn, tokenizer)}
        return cls(**load_columns(directory, **kinds))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer
