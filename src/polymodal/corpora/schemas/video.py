"""Clips: encoded bytes, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._image_lists import media_root, note_of
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
    if not names:
        return None
    root = media_root(view, names[0])
    return Found({names[0]: FoundColumn(Video(root=root))}, (names[0],), notes=note_of(view, names[0], root))
