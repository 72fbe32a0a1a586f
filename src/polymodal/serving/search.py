"""Exact text-to-image (or other modality) retrieval over a whole corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.retrieval import top
from polymodal.evaluation.task import available_modalities, indexed_column
from polymodal.modalities import Text
from polymodal.training.run import Run

TILE, MARGIN = 128, 12  # pixels of the contact sheet


class CorpusHit(NamedTuple):
    """Retrieved example. caption: its first one, in the corpus's main language if possible."""

    row: int
    key: str
    similarity: float
    caption: str


def search_corpus(run: Run, corpus: Corpus, query: str, count: int = 8, split: str = "test") -> list[CorpusHit]:
    """Return the images, clips or point clouds most similar to a text, best first (top-k); `split` may be `all`.

    Raises UserError without a query, or when the run does not embed texts.
    """
    if not query.strip():
        raise UserError("The query is empty; say what to look for.")
    if count < 1:
        raise UserError("--top is at least 1.")
    asked = run.embed(text=[query])["text"]
    reader = Reader(corpus, run.processor)
    rows, examples = reader.read_all(np.arange(len(corpus)) if split == "all" else corpus.rows(split))
    if not examples:
        raise UserError(f"The split '{split}' of '{corpus.name}' has no readable example to search.")
    item = indexed_column(available_modalities(corpus, run.processor))
    if item in (None, "text"):
        raise UserError(f"The run '{run.name}' embeds nothing that '{corpus.name}' has and texts are about.")
    found = run.embed(256, **{item: [example[item] for example in examples]})[item]
    similarity, said = found @ asked[0], corpus.columns[corpus.column_with(Text)]
    assert isinstance(said, Text)
    return [
        CorpusHit(
            int(rows[n]),
            corpus.key(int(rows[n])),
            float(similarity[n]),
            said.in_main_language(examples[n]["text"])[0].text,
        )
        for n in top(asked, found, count)[0]
    ]


def contact_sheet(found: Sequence[tuple[PILImage.Image, float]], columns: int = 4) -> PILImage.Image:
    """Arrange images in row-major order, each with rank and similarity."""
    columns = min(columns, len(found))
    lines = -(-len(found) // columns)
    font = ImageFont.load_default(size=13)
    width, height = TILE + MARGIN, TILE + MARGIN + 18
    sheet = PILImage.new("RGB", (columns * width + MARGIN, lines * height + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, similarity) in enumerate(found):
        left, top_edge = MARGIN + place % columns * width, MARGIN + place // columns * height
        scale = TILE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, PILImage.Resampling.LANCZOS)
        sheet.paste(small, (left + (TILE - size[0]) // 2, top_edge + (TILE - size[1]) // 2))
        draw.text((left, top_edge + TILE + 2), f"{place + 1}   {similarity:.3f}", fill="#444444", font=font)
    return sheet
