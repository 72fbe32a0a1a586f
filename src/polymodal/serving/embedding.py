"""Vectors of a whole corpus in one Parquet file, for whatever comes next: an index, a notebook, a database."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.training.run import Run

CHUNK = 1024  # examples in memory at once


def write_embeddings(run: Run, corpus: Corpus, out: Path) -> tuple[int, dict[str, str]]:
    """Columns key, image and text (fixed-size lists of float32); text is the mean over an example's captions.

    Returns how many examples were written, and key -> reason for those that could not be read. The file appears whole
    or not at all. Raises UserError when the run cannot embed or the file cannot be written.
    """
    reader = Reader(corpus, run.processor, memory=0)
    written = 0
    aside = out.with_name(f".{out.name}.partial")
    writer: pq.ParquetWriter | None = None
    try:
        for start in range(0, len(corpus), CHUNK):
            rows, examples = reader.read_all(np.arange(start, min(start + CHUNK, len(corpus))))
            if not examples:
                continue
            captions = [[caption.text for caption in example["text"]] for example in examples]
            counts = [len(texts) for texts in captions]
            vectors = run.embed(
                image=[example["image"] for example in examples], text=[text for texts in captions for text in texts]
            )
            texts = np.stack([part.mean(0).numpy() for part in vectors["text"].split(counts)])
            texts /= np.linalg.norm(texts, axis=1, keepdims=True).clip(min=1e-12)
            table = pa.table(
                {
                    "key": [corpus.key(int(row)) for row in rows],
                    "image": _vectors(vectors["image"].numpy()),
                    "text": _vectors(texts),
                }
            )
            writer = writer or pq.ParquetWriter(aside, table.schema)
            writer.write_table(table)
            written += len(rows)
        if writer is None:
            raise UserError(f"No example of '{corpus.name}' can be read, so {out} was not written.")
        writer.close()
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
    return written, reader.skipped


def _vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
