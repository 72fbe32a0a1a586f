"""Embeddings of a whole corpus in one file, for an index, a notebook, or a database."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError, unknown
from polymodal.evaluation.task import ITEMS, QUERIES
from polymodal.serving.vector_files import vector_writer
from polymodal.training.folder_lock import writes
from polymodal.training.run import Run
from polymodal.types import Example

CHUNK = 1024  # examples in memory at once
EMBEDDED = ("text", "thread", "views", *ITEMS, *QUERIES)  # columns that methods embed


@writes("out", inside_runs=True)
def write_embeddings(run: Run, corpus: Corpus, out: Path, column: str = "") -> tuple[int, dict[str, str]]:
    """Write the keys, and the embeddings per modality that the run embeds, in the format of the suffix.

    column: the only modality to write. Returns the number of examples, and key -> reason for unreadable ones. The file
    is written atomically. Raises UserError when the run cannot embed, or the file cannot be written or has another
    suffix.
    """
    reader = Reader(corpus, run.processor, memory=0)
    written = 0
    aside = out.with_name(f".{out.name}.partial")
    writer = vector_writer(out)(aside)
    try:
        for start in range(0, len(corpus), CHUNK):
            rows, examples = reader.read_all(np.arange(start, min(start + CHUNK, len(corpus))))
            if not examples:
                continue
            names = [name for name in examples[0] if name in EMBEDDED]
            if not names:
                raise UserError(f"The run '{run.name}' cannot embed anything that '{corpus.name}' has.")
            if column and column not in names:
                raise unknown("column of vectors", column, names)
            keys = [corpus.key(int(row)) for row in rows]
            writer.write(keys, {name: vectors_of(run, name, examples) for name in ([column] if column else names)})
            written += len(rows)
        if not written:
            raise UserError(f"No example of '{corpus.name}' can be read, so {out} was not written.")
        writer.close()
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):  # on a read-only file system, even where there is no file
            aside.unlink(missing_ok=True)
    return written, reader.skipped


def vectors_of(run: Run, column: str, examples: list[Example]) -> Float[np.ndarray, "examples dim"]:
    """Return one L2-normalized embedding per example; for several captions, their normalized mean."""
    values = [example[column] for example in examples]
    if column != "text":
        return run.embed(256, **{column: values})[column].numpy()
    captions = [caption.text for texts in values for caption in texts]
    parts = run.embed(text=captions)["text"].split([len(texts) for texts in values])
    means = np.stack([part.mean(0).numpy() for part in parts])
    return means / np.linalg.norm(means, axis=1, keepdims=True).clip(min=1e-12)
