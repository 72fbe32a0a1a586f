"""Qualitative plots: a grid of panels with test examples and the answers of a method, written as one PNG per task."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample

EXAMPLES = 4  # rows of a plot
MAX_CANDIDATES = 500  # examples that are ranked for a plot of retrieval
TOP = 5  # retrieved items per query

CORRECT, WRONG, NEUTRAL, NOTE = "#1a7f37", "#b42318", "#222222", "#6b7280"
WIDTH, HEIGHT, TITLE, GAP = 1.3, 1.3, 0.18, 0.1  # inches of a panel, of the title above it, and between panels
FONT_SIZE = 8.0  # points
RESOLUTION = 100  # pixels per inch
COLORS = 160  # of the palette of the PNG, beside those of verdicts

Line = tuple[str, str]  # a text and its color


@dataclass(frozen=True)
class Panel:
    """One cell of a plot. draw: draws on matplotlib axes. correct: whether the frame is green or red; None for none."""

    draw: Callable[[Any], None]
    title: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class Panels:
    """A grid of panels. title: one line above all. widths, height: of columns and rows, relative to an image."""

    rows: Sequence[Sequence[Panel]]
    title: str = ""
    widths: Sequence[float] = ()
    height: float = 1.0

    def save(self, path: Path | BinaryIO) -> None:
        """Write a PNG with a palette, which keeps it small."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image as PILImage

        widths = WIDTH * np.array(self.widths or [1.0] * max(map(len, self.rows)))
        height = HEIGHT * self.height
        lines = [TITLE * max(len(panel.title.splitlines()) for panel in row) for row in self.rows]
        top = 2 * GAP + TITLE * bool(self.title)
        size = widths.sum() + GAP * (len(widths) + 1), sum(lines) + (height + GAP) * len(self.rows) + top
        fig = Figure(figsize=size, dpi=RESOLUTION)
        canvas = FigureCanvasAgg(fig)
        fig.text(GAP / size[0], 1 - GAP / 2 / size[1], self.title, va="top", fontsize=9, fontweight="bold")
        for row, above in zip(self.rows, lines, strict=True):
            top += above
            left = GAP
            for panel, width in zip(row, widths, strict=False):
                box = (left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1])
                _draw(panel, fig.add_axes(box))
                left += width + GAP
            top += height + GAP
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # scripts that matplotlib's font lacks
            canvas.draw()
        image = PILImage.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        palette = PILImage.new("P", (1, 1))
        palette.putpalette([*(image.quantize(COLORS).getpalette() or [])[: 3 * COLORS], *_verdict_palette()])
        image.quantize(palette=palette, dither=PILImage.Dither.NONE).save(path, "PNG", optimize=True)


def _verdict_palette() -> list[int]:
    """The colors of verdicts and their mixtures with white, which a palette of the most frequent colors would lose."""
    values = [np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) for color in (CORRECT, WRONG, NOTE)]
    mixed = [part * value + (1 - part) * 255 for value in values for part in (1.0, 0.75, 0.5, 0.25)]
    return np.concatenate(mixed).round().astype(int).tolist()


def _draw(panel: Panel, axes: Any) -> None:
    panel.draw(axes)
    axes.set(xticks=[], yticks=[], xlabel="")
    axes.set_title(escaped(panel.title), fontsize=FONT_SIZE, loc="left", pad=3, color="#444444")
    if panel.correct is not None:
        axes.axis("on")
        for spine in axes.spines.values():
            spine.set(visible=True, color=CORRECT if panel.correct else WRONG, linewidth=2.5)


def escaped(text: str) -> str:
    """The text with dollar signs that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")


def clipped(text: str, width: int = 24, lines: int = 2) -> str:
    """The text on at most so many lines of so many characters."""
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ...") or [""])


def verdict_color(correct: bool) -> str:
    """The color of a correct or wrong answer."""
    return CORRECT if correct else WRONG


def value_panel(corpus: Corpus, row: int, column: str, title: str = "", correct: bool | None = None) -> Panel:
    """A stored value, drawn by its modality; a missing one is a dash."""

    def draw(axes: Any) -> None:
        try:
            corpus.columns[column].plot(corpus.value(row, column), axes)
        except UnreadableExample:
            axes.axis("off")
            axes.text(0.5, 0.5, "-", ha="center", va="center", color=NOTE)

    return Panel(draw, title, correct)


def image_panel(
    image: Float[Tensor, "3 height width"] | np.ndarray, title: str = "", correct: bool | None = None
) -> Panel:
    """An image: colors on the scale 0-1 by channel, or an array of height x width (x 3)."""
    pixels = image if isinstance(image, np.ndarray) else image.permute(1, 2, 0).clamp(0, 1).numpy()

    def draw(axes: Any) -> None:
        axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 100 else "antialiased")
        axes.axis("off")

    return Panel(draw, title, correct)


def boxes_panel(
    image: Float[Tensor, "3 height width"], boxes: Sequence[tuple[Sequence[float], str, str]], title: str = ""
) -> Panel:
    """An image with boxes: corners as fractions of the image, the color, and the line style of each."""
    base = image_panel(image)
    height, width = image.shape[1:]

    def draw(axes: Any) -> None:
        base.draw(axes)
        for (left, top, right, bottom), color, style in boxes:
            x = np.array([left, right, right, left, left]) * width - 0.5
            y = np.array([top, top, bottom, bottom, top]) * height - 0.5
            axes.plot(x, y, style, color=color, linewidth=1.8)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))

    return Panel(draw, title)


def heat_panel(
    image: Float[Tensor, "3 height width"],
    weights: Float[Tensor, " patches"],
    title: str = "",
    correct: bool | None = None,
) -> Panel:
    """An image that is as bright as the weights of its patches, which are a square grid in row-major order."""
    grid = math.isqrt(len(weights))
    scaled = (weights - weights.min()) / (weights.max() - weights.min()).clamp(min=1e-6)
    base = image_panel(image)

    def draw(axes: Any) -> None:
        base.draw(axes)
        height, width = image.shape[1:]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(scaled.reshape(grid, grid).numpy(), cmap="inferno", alpha=0.65, extent=extent, vmin=0, vmax=1)

    return Panel(draw, title, correct)


def text_panel(lines: Sequence[str | Line], title: str = "") -> Panel:
    """Wrapped lines of text, each in its color, as many as there is room for."""

    def draw(axes: Any) -> None:
        axes.axis("off")
        inches = axes.get_position().size * axes.figure.get_size_inches()
        width, room = int(inches[0] * 72 / (0.52 * FONT_SIZE)), int(inches[1] * 72 / (1.3 * FONT_SIZE))
        pairs = [(line, NEUTRAL) if isinstance(line, str) else line for line in lines]
        wrapped = [
            (part, color)
            for text, color in pairs
            for part in textwrap.wrap(text, width, subsequent_indent="  ") or [""]
        ]
        if len(wrapped) > room:
            wrapped = [*wrapped[: room - 1], ("...", NOTE)]
        for number, (text, color) in enumerate(wrapped):
            offset = (0, -1.3 * FONT_SIZE * number)
            style = {"va": "top", "fontsize": FONT_SIZE, "color": color, "textcoords": "offset points"}
            axes.annotate(escaped(text), (0, 1), offset, xycoords="axes fraction", **style)

    return Panel(draw, title)


def matrix_panel(counts: Int[np.ndarray, "rows columns"], title: str = "") -> Panel:
    """A matrix of counts, such as a confusion matrix: darker for more, by row, with numbers of rows and columns."""
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(axes: Any) -> None:
        axes.imshow(fractions, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
        for (row, column), count in np.ndenumerate(counts) if len(counts) <= 8 else ():
            axes.text(column, row, str(count), ha="center", va="center", fontsize=FONT_SIZE - 1, color=NEUTRAL)
        for number in range(len(counts)) if len(counts) <= 8 else ():
            axes.text(-0.46, number - 0.46, str(number + 1), va="top", fontsize=FONT_SIZE - 3, color=NOTE)

    return Panel(draw, title)


def shown_images(images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[Tensor, "images 3 height width"]:
    """Square images as examples hold them, on the scale 0-1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def retrieval_panels(
    queries: Sequence[Panel],
    similarity: Float[Tensor, "queries items"],
    relevant: Sequence[np.ndarray],
    item: Callable[[int, str, bool], Panel],
    title: str,
) -> Panels:
    """A row per query: the query and its most similar items, the relevant ones in green frames.

    item: the panel of an item, from its number, a title and whether it is relevant.
    """
    rows = []
    for query, scores, right in zip(queries, similarity, relevant, strict=True):
        best = scores.nan_to_num(-np.inf).argsort(descending=True, stable=True)[:TOP].tolist()
        items = [item(number, f"rank {rank}", number in right) for rank, number in enumerate(best, start=1)]
        rows.append([query, *items])
    return Panels(rows, title, [1.4, *[1.0] * min(TOP, similarity.shape[1])])
