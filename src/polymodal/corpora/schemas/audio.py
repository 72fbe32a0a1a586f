"""Sounds: encoded bytes, `{"bytes", "path"}` records of `datasets`, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._image_lists import only_media
from polymodal.corpora.schemas._schema import Found, View
from polymodal.modalities import Audio

rank = 1
option = "audio"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")


def find(view: View) -> Found | None:
    """Find the first column of sounds."""
    return only_media(view, option, AUDIO_SUFFIXES, Audio)
