"""Kinds of encoded values and of paths, by the first bytes of files and by suffixes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polymodal.corpora._types import fields_of, is_binary, is_string
from polymodal.corpora.schemas._schema import View
from polymodal.files import open_regular
from polymodal.modalities.image import format_of

LOOKED_AT = 20  # values of a sample that are opened


def holds(view: View, name: str, kind: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether most values of a column are encoded values, or paths, of this kind: image, audio or video.

    Encoded values (bytes, or `{"bytes", "path"}` records of `datasets`) are recognized by their first bytes; paths by
    their suffix, or by the first bytes of the file where they have none of the usual.
    """
    stored = view.type(name)
    some = view.sample(name)[:LOOKED_AT]
    if is_binary(stored):  # those that nothing recognizes are damaged
        return _majority(recognized == kind for recognized in map(kind_of, some) if recognized)
    if fields_of(stored) >= {"bytes", "path"} and not hasattr(stored, "value_type"):
        return _majority(_record_is(value, kind, suffixes) for value in some)
    return is_string(stored) and are_paths(view, name, kind, suffixes)


def are_paths(view: View, name: str, kind: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether most strings of a column are paths of files of this kind."""
    values = [value.strip() for value in view.sample(name)]
    some = [value for value in values[:LOOKED_AT] if len(value) < 1000]
    heads = [_head(view.root, value) for value in some]
    if any(heads):
        return _majority(
            kind_of(head) == kind or value.lower().endswith(suffixes)
            for value, head in zip(some, heads, strict=True)
            if head
        )
    # No file is there: a sentence may end in the name of a file, a path has no blanks as a rule.
    return _majority(value.lower().endswith(suffixes) and not (is_url(value) or " " in value) for value in values)


def is_url(value: str) -> bool:
    return value.lower().startswith(("http://", "https://", "s3://", "gs://"))


def kind_of(value: Any) -> str | None:
    """Return the kind of a file by its first bytes: image, audio, video, array, or None."""
    head = bytes(value[:64]) if isinstance(value, bytes) else b""
    if not head:
        return None
    if head[:4] == b"RIFF":
        return {b"WAVE": "audio", b"AVI ": "video", b"WEBP": "image"}.get(head[8:12])
    if (
        head[:4] in (b"fLaC", b"OggS")
        or head[:3] == b"ID3"
        or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2)
    ):
        return "audio"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "video"
    if head[4:8] == b"ftyp":
        return "image" if head[8:12] in (b"avif", b"avis", b"heic", b"mif1") else "video"
    if head[:6] == b"\x93NUMPY":
        return "array"
    return "image" if format_of(head) else None


def _record_is(value: dict[str, Any], kind: str, suffixes: tuple[str, ...]) -> bool:
    if value["bytes"]:
        return kind_of(value["bytes"]) == kind
    return bool(value["path"]) and value["path"].lower().endswith(suffixes)


def _head(root: Path, value: str) -> bytes:
    try:
        with open_regular(root / value) as file:
            return file.read(64)
    except (OSError, ValueError):
        return b""


def _majority(fits: Iterable[bool]) -> bool:
    fits = list(fits)
    return bool(fits) and sum(fits) > len(fits) / 2
