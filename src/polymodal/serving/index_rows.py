"""What an index stores of the examples of a corpus: keys, captions, thumbnails, metadata, and digests of changes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image as PILImage

from polymodal.corpora.contact_sheet import has_images, image_of
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Table, Text, Video
from polymodal.modalities.image import encoded, to_rgb
from polymodal.serving.index_table import (
    RESERVED_COLUMNS,
)
from polymodal.types import Example

THUMBNAIL = 160  # pixels of the longer side


class IndexRows:
    """Columns of an index from a corpus, besides vectors.

    keys: of every row; duplicates are numbered from the second on. metadata: columns for filters, the plain columns of
    the table and the cells of its table rows: name -> (column, cell, type).
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.captions = corpus.columns[corpus.column_with(Text)] if corpus.has_modality(Text) else None
        self.has_images = has_images(corpus)
        self.split = {int(row): split for split, rows in corpus.splits.items() for row in rows}
        self.keys: list[str] = []
        times: Counter[str] = Counter()
        for row in range(len(corpus)):
            key = corpus.key(row)
            times[key] += 1
            self.keys.append(key if times[key] == 1 else f"{key}#{times[key]}")
        self.metadata: dict[str, tuple[str, str | None, pa.DataType]] = {}
        shown = {name for name, kind in corpus.columns.items() if isinstance(kind, Image | Video | Text)}
        schema = corpus.table.schema if corpus.table.num_columns else pa.schema([])
        tables = [field for field in schema if isinstance(corpus.columns.get(field.name), Table)]
        # Columns of the user's files are cells of the table that was made of them, where they have their types.
        own_columns = {cell.name for table in tables for cell in table.type} & {*schema.names}
        for field in schema:
            if field in tables:
                for cell in field.type:
                    name = cell.name if cell.name in own_columns else f"{field.name}_{cell.name}"
                    self._add(name, field.name, cell.name, cell.type)
            elif field.name not in {*shown, *own_columns, corpus.keys, "split"}:
                self._add(field.name, field.name, None, field.type)

    def _add(self, name: str, column: str, cell: str | None, kind: pa.DataType) -> None:
        if pa.types.is_large_string(kind):
            kind = pa.string()
        if kind in (pa.string(), pa.bool_()) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            name = re.sub(r"\W", "_", name)
            self.metadata[f"{name}_" if name in RESERVED_COLUMNS else name] = column, cell, kind

    def _cells(self, row: int) -> dict[str, Any]:
        """Return the metadata of a row."""
        raw = {column: self.corpus.raw(row, column) for column, _, _ in self.metadata.values()}
        return {
            name: raw[column] if cell is None else (raw[column] or {}).get(cell)
            for name, (column, cell, _) in self.metadata.items()
        }

    def digest(self, row: int) -> str:
        """Return a digest of everything stored for an example; for files, of path, size and modification time."""
        digest = hashlib.blake2b(repr(self._cells(row)).encode(), digest_size=16)
        for name, modality in self.corpus.columns.items():
            if isinstance(modality, Table):  # its values are among the cells
                continue
            value = self.corpus.raw(row, name)
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
            if isinstance(value, str) and isinstance(modality, Image | Video):
                try:
                    about = os.stat((modality.root or Path()) / value)
                    digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
                except OSError:
                    digest.update(b"missing")
        return digest.hexdigest()

    def _thumbnail(self, row: int) -> bytes | None:
        """Return the thumbnail, or None for examples without an image."""
        try:
            return thumbnail(image_of(self.corpus, row)) if self.has_images else None
        except UnreadableExample:
            return None

    def to_table(
        self, rows: np.ndarray, examples: list[Example], digests: list[str], vectors: Float[np.ndarray, "rows dim"]
    ) -> pa.Table:
        """Return the rows to store."""
        records = []
        for row, example, digest in zip(rows.tolist(), examples, digests, strict=True):
            captions = example.get("text", [])
            shown = (
                self.captions.in_main_language(captions)[0].text if isinstance(self.captions, Text) and captions else ""
            )
            records.append(
                {
                    "key": self.keys[row],
                    "split": self.split.get(row),
                    "caption": shown,
                    "text": "\n".join(caption.text for caption in captions),
                    "thumbnail": self._thumbnail(row),
                    "digest": digest,
                    **self._cells(row),
                }
            )
        types = dict.fromkeys(("key", "split", "caption", "text", "digest"), pa.string()) | {"thumbnail": pa.binary()}
        types |= {name: kind for name, (_, _, kind) in self.metadata.items()}
        table = pa.Table.from_pylist(records, pa.schema(types))
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        return table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))


def thumbnail(image: PILImage.Image) -> bytes:
    """Return a JPEG on white, at most `THUMBNAIL` pixels wide and high."""
    small = to_rgb(image).copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return encoded(small, "JPEG", quality=85)
