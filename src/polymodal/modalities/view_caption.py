"""Captions of the views of an example, each with its view and a matching score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


class ViewCaption(NamedTuple):
    """Caption of a view. view: index of the image. fit: matching score, such as CLIP's cosine similarity; higher is
    better."""

    view: int
    text: str
    fit: float = 0.0


@dataclass(frozen=True)
class ViewCaptions:
    """Column of lists of captions of the example's images."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"view": pa.int32(), "text": pa.string(), "fit": pa.float32()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[ViewCaption]:
        """Decode captions, sorted by view, then by descending score. Raises UnreadableExample when there is none."""
        captions = [ViewCaption(record["view"], record["text"], record["fit"]) for record in value]
        if not captions:
            raise UnreadableExample("no image has a caption")
        return sorted(captions, key=lambda caption: (caption.view, -caption.fit))

    def describe(self, value: list[ViewCaption]) -> str:
        views = len({caption.view for caption in value})
        return f"{len(value)} captions of {views} images: {value[0].text}"

    def plot(self, value: list[ViewCaption], axes: Any) -> None:
        lines = (f"{caption.view + 1}  {caption.text}" for caption in value)
        write_text(axes, "\n".join(lines), size=7, width=42, lines=12)
