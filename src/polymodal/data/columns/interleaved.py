"""Web pages and papers: texts and images in reading order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.modalities import Interleaved


@dataclass(frozen=True)
class InterleavedColumn(Column):
    """Texts and images of a document in reading order. image: the column that resizes the images."""

    reads = (Interleaved,)

    image: TiledImageColumn

    def load(self, corpus: Corpus, row: int) -> list[str | np.ndarray]:
        parts: list[str | np.ndarray] = []
        for piece in corpus.value(row, corpus.column_with(Interleaved)):
            if piece.figure is not None:
                parts.append(self.image.open(piece.figure))
            elif parts and isinstance(parts[-1], str):
                parts[-1] += f"\n{piece.text}"
            else:
                parts.append(piece.text)
        return parts

    def __call__(self, documents: list[Any]) -> list[Any]:
        return documents
