"""What a recipe of a caption metric does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class CaptionScore:
    """What a metric says of a caption. value: 1 is right. objects: what the caption speaks of, each with its score."""

    value: float
    objects: Mapping[str, float]


@runtime_checkable
class Metric(Protocol):
    """What a recipe of a metric does: judge a caption by other captions and by detected objects of its image."""

    def score(self, caption: str, references: Sequence[str], detections: Sequence[str] = ()) -> CaptionScore: ...
