"""Images: encoded bytes, `{"bytes", "path"}` records of `datasets`, or paths."""

from __future__ import annotations

from polymodal.corpora.schemas._image_lists import media_root, note_of
from polymodal.corpora.schemas._media import holds
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.errors import UserError
from polymodal.modalities import Image
from polymodal.modalities.image import IMAGE_SUFFIXES

rank = 1
option = "image"
USUAL = (
    "image",
    "img",
    "images",
    "picture",
    "photo",
    "image_path",
    "img_path",
    "filepath",
    "file_name",
    "filename",
    "path",
    "file",
)


def find(view: View) -> Found | None:
    """Find the image column. Raises UserError where several qualify, and none has a usual name."""
    if view.named is not None:
        if not holds(view, view.named, "image", IMAGE_SUFFIXES):
            raise view.refuse("image")
        return _found(view, view.named)
    if any(isinstance(kind, Image) for kind in view.modalities.values()):
        return None
    candidates = [name for name in view.free if holds(view, name, "image", IMAGE_SUFFIXES)]
    if len(candidates) > 1:
        usual = [name for name in view.usual(USUAL) if name in candidates]
        if not usual:
            raise UserError(
                f"Several columns may have images: {', '.join(candidates)}. Name one with --image-column COLUMN."
            )
        candidates = usual
    return _found(view, candidates[0]) if candidates else None


def _found(view: View, name: str) -> Found:
    root = media_root(view, name)
    return Found({name: FoundColumn(Image(root))}, (name,), notes=note_of(view, name, root))
