"""Clips: encoded bytes, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._image_lists import only_media
from polymodal.corpora.schemas._schema import Found, View
from polymodal.modalities import Video
from polymodal.modalities.video import SUFFIXES

rank = 1
option = "video"


def find(view: View) -> Found | None:
    """Find the first column of clips."""
    return only_media(view, option, SUFFIXES, Video)
