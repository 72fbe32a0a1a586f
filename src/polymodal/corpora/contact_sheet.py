"""Contact sheets: one row per example of a corpus, one cell per column."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample
from polymodal.files import written_aside
from polymodal.modalities import Image, Video
from polymodal.modalities.image import to_rgb

WIDTH, HEIGHT = 2.3, 1.9  # inches of a cell
SOFTWARE = "polymodal contact sheet"  # what the PNG says it was made by


def some_rows(corpus: Corpus, count: int, seed: int = 0) -> np.ndarray:
    """Sample training rows at random, those with most columns first."""
    rows = corpus.splits.get("train", np.arange(len(corpus)))
    rows = np.random.default_rng(seed).permutation(rows)[: 20 * count]
    filled = np.zeros(len(rows), int)
    for column in {*corpus.columns} & {*corpus.table.column_names}:  # shards that are streamed have no table
        filled += corpus.has(column)[rows]
    return rows[np.argsort(-filled, kind="stable")][:count]


def describe_row(corpus: Corpus, row: int) -> dict[str, str]:
    """Return column -> short description of its value, or the reason why it is missing."""
    descriptions = {}
    for name, modality in corpus.columns.items():
        try:
            descriptions[name] = modality.describe(corpus.value(row, name))
        except UnreadableExample as error:
            descriptions[name] = f"({error})"
    return descriptions


def plot_contact_sheet(corpus: Corpus, rows: np.ndarray, path: Path) -> None:
    """Write a PNG. At most eight columns are side by side; others are placed below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(corpus.columns)
    across = min(len(names), 8)
    lines = -(-len(names) // across)
    figure = Figure(figsize=(across * WIDTH, len(rows) * lines * HEIGHT + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    title = textwrap.fill(f"{corpus.name}: {corpus.about.description}", across * 28)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(rows) * lines, across, squeeze=False)
    for line, row in enumerate(rows):
        for index in range(across * lines):
            cell = axes[line * lines + index // across][index % across]
            if index >= len(names):
                cell.axis("off")
                continue
            modality = corpus.columns[names[index]]
            if line == 0 or lines > 1:
                cell.set_title(names[index], fontsize=8, color="#555555")
            try:
                modality.plot(corpus.value(int(row), names[index]), cell)
            except UnreadableExample:
                cell.axis("off")
                cell.text(0.5, 0.5, "—", ha="center", va="center", color="#999999")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # scripts that matplotlib's font lacks
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": SOFTWARE})


def has_images(corpus: Corpus) -> bool:
    """Return whether examples have an image or a clip."""
    return corpus.has_modality(Image) or corpus.has_modality(Video)


def image_of(corpus: Corpus, row: int) -> PILImage.Image:
    """Return the image of an example, or the middle frame of its clip. Raises UnreadableExample."""
    if corpus.has_modality(Image):
        return to_rgb(corpus.value(row, corpus.column_with(Image)))
    frames = corpus.value(row, corpus.column_with(Video)).frames
    return PILImage.fromarray(frames[len(frames) // 2])
