"""Sounds: encoded bytes, `{"bytes", "path"}` records of `datasets`, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._image_lists import media_root, note_of
from polymodal.corpora.schemas._media import holds
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Audio

rank = 1
option = "audio"
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")


def find(view: View) -> Found | None:
    """Find the first column of sounds."""
    if view.named is not None and not holds(view, view.named, "audio", AUDIO_SUFFIXES):
        raise view.refuse("audio")
    if any(isinstance(kind, Audio) for kind in view.modalities.values()):
        return None
    names = [view.named] if view.named else [name for name in view.free if holds(view, name, "audio", AUDIO_SUFFIXES)]
    if not names:
        return None
    root = media_root(view, names[0])
    return Found({names[0]: FoundColumn(Audio(root=root))}, (names[0],), notes=note_of(view, names[0], root))
