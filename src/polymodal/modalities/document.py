"""Documents: pages of words with bounding boxes (forms, letters, articles), and interleaved text and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Int
from PIL import Image as PILImage
from torch import Tensor

from polymodal.errors import UserError
from polymodal.modalities.image import Image, to_rgb
from polymodal.modalities.modality import write_text
from polymodal.modalities.region import checked_box
from polymodal.modalities.text import Tokenizer, Tokens, joined_pieces

OTHER = "other"
NO_LINK = -1
NO_SEGMENT = -1
BOX_SCALE = 1000  # boxes are in thousandths of the page's width and height, as in LayoutLM


class Word(NamedTuple):
    """A word of a page.

    box: left, top, right, bottom, 0 to 1000. field: entity type, such as `total`. segment: id of its text block, or -1.
    link: segment of the key that this word is a value of, such as that of "Total:", or -1.
    """

    text: str
    box: tuple[int, int, int, int]
    field: str = OTHER
    segment: int = NO_SEGMENT
    link: int = NO_LINK


@dataclass(frozen=True)
class Words:
    """Column of the words of a page in reading order. fields: entity types, `other` first."""

    fields: tuple[str, ...] = (OTHER,)

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(
            pa.struct(
                {
                    "text": pa.string(),
                    "box": pa.list_(pa.int32()),
                    "field": pa.string(),
                    "segment": pa.int32(),
                    "link": pa.int32(),
                }
            )
        )

    def decode(self, value: list[Mapping[str, Any]]) -> list[Word]:
        """Decode words. Raises UnreadableExample for a box that is none."""
        return [
            Word(
                word["text"] or "",
                checked_box(tuple(word["box"] or ()), BOX_SCALE),
                word["field"] or OTHER,
                NO_SEGMENT if word["segment"] is None else word["segment"],
                NO_LINK if word["link"] is None else word["link"],
            )
            for word in value
        ]

    def describe(self, value: list[Word]) -> str:
        fields = {word.field for word in value} - {OTHER}
        text = " ".join(word.text for word in value[:12])
        return f"{len(value)} words{f', {len(fields)} kinds of field' if fields else ''}: {text} ..."

    def plot(self, value: list[Word], axes: Any) -> None:
        """Plot boxes, colored by field."""
        from matplotlib.patches import Rectangle

        fields = sorted({word.field for word in value} - {OTHER})
        for word in value:
            left, top, right, bottom = word.box
            color = "#c8c8c8" if word.field == OTHER else f"C{fields.index(word.field) % 10}"
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor=color, linewidth=0))
        axes.set(xlim=(0, BOX_SCALE), ylim=(BOX_SCALE, 0), xticks=[], yticks=[])
        for index, name in enumerate(fields[:10]):
            style = {"color": f"C{index}", "fontsize": 5, "va": "top", "transform": axes.transAxes}
            axes.text(1.02, 0.98 - 0.09 * index, name, **style)


class Segment(NamedTuple):
    """Element of a document: text with a kind (heading, paragraph, caption, item, code), or a figure."""

    kind: str
    text: str
    figure: PILImage.Image | None = None


@dataclass(frozen=True)
class Interleaved:
    """Column of interleaved documents: text and figures in reading order.

    Figures are encoded bytes, records of `datasets`, or paths. root: folder of relative paths.
    """

    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"kind": pa.string(), "text": pa.string(), "figure": pa.binary()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Segment]:
        """Open figures without decoding pixels yet. Raises UnreadableExample for a figure that is not an image."""
        stored = [piece for piece in value if piece["text"] or piece["figure"] is not None]
        image = Image(self.root)
        figures = [None if piece["figure"] is None else image.decode(piece["figure"]) for piece in stored]
        return [
            Segment(piece["kind"], piece["text"] or "", figure) for piece, figure in zip(stored, figures, strict=True)
        ]

    def describe(self, value: list[Segment]) -> str:
        figures = sum(segment.figure is not None for segment in value)
        words = sum(len(segment.text.split()) for segment in value)
        return f"{value[0].text[:60] if value else ''}: {words:,} words and {figures} figures in {len(value)} pieces"

    def plot(self, value: list[Segment], axes: Any) -> None:
        """Plot the first texts, and the first figure in the lower half."""
        texts = [segment.text for segment in value if segment.text]
        write_text(axes, "\n".join(texts), lines=8, size=6, width=52)
        figure = next((segment.figure for segment in value if segment.figure is not None), None)
        if figure is not None:
            inset = axes.inset_axes((0.05, 0.0, 0.9, 0.5))
            inset.imshow(to_rgb(figure))
            inset.axis("off")


@dataclass(frozen=True)
class PageTokens:
    """Batch of pages: tokens of words with the words' boxes, zeros for special tokens and padding.

    word: index of the word of a token, -1 for special tokens and padding.
    """

    tokens: Tokens
    boxes: Int[Tensor, "batch length 4"]
    word: Int[Tensor, "batch length"]

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> PageTokens:
        return PageTokens(self.tokens.to(device), self.boxes.to(device), self.word.to(device))


def invalid_box(words: list[Word]) -> str:
    """Return what is wrong with the first box that is outside the page or has its corners swapped; empty if none is."""
    for word in words:
        left, top, right, bottom = word.box
        if not (0 <= left <= right <= BOX_SCALE and 0 <= top <= bottom <= BOX_SCALE):
            return (
                f"the word '{word.text}' has the box {tuple(word.box)}; boxes are left, top, right, bottom in "
                f"thousandths of the page, from 0 to {BOX_SCALE}"
            )
    return ""


def page_tokens(pages: list[list[Word]], tokenizer: Tokenizer) -> PageTokens:
    """Tokenize words in reading order; pages beyond the tokenizer's context length are truncated.

    Raises UserError for an invalid box.
    """
    if fault := next(filter(None, map(invalid_box, pages)), ""):
        raise UserError(f"A page cannot be read: {fault}.")
    tokens, part = joined_pieces([[word.text for word in page] for page in pages], tokenizer)
    boxes = torch.zeros((*part.shape, 4), dtype=torch.long)
    for row, page in enumerate(pages):
        of_words = torch.tensor([word.box for word in page] or [(0, 0, 0, 0)])
        real = part[row] >= 0
        boxes[row, real] = of_words[part[row, real]]
    return PageTokens(tokens, boxes, part)
