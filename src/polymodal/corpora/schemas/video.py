"""Clips: encoded bytes, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._media import holds
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Video
from polymodal.modalities.video import SUFFIXES

rank = 1
option = "video"


def find(view: View) -> Found | None:
    """Find the first column of clips."""
    if view.named is not None and not holds(view, view.named, "video", SUFFIXES):
        raise view.refuse("video")
    if any(isinstance(kind, Video) for kind in view.modalities.values()):
        return None
    names = [view.named] if view.named else [name for name in view.free if holds(view, name, "video", SUFFIXES)]
    return Found({names[0]: FoundColumn(Video(root=view.root))}, (names[0],)) if names else None
