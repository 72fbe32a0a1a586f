"""Building and updating of a vector index: a run's embeddings with keys, captions, thumbnails and metadata.

An index mirrors its data: building again embeds new and changed examples, and removes deleted ones. Chunks are written
atomically, so that a stopped build resumes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.task import available_modalities, indexed_column
from polymodal.serving.embedding import vectors_of
from polymodal.serving.index_rows import IndexRows
from polymodal.serving.index_table import (
    Origin,
    arrange,
    holds_index,
    lacks_text_index,
    open_table,
    read_digests,
    read_origin,
    remove_rows,
    user_errors,
    write_rows,
)
from polymodal.training.feature_cache import weights_key
from polymodal.training.folder_lock import lock_folder
from polymodal.training.run import Run

CHUNK = 512  # examples per embedded and written chunk

Report = Callable[[int, int], None]  # rows done, total


class Built(NamedTuple):
    """Numbers of added, changed, removed and unchanged examples; skipped: key -> reason."""

    added: int
    changed: int
    removed: int
    kept: int
    skipped: dict[str, str]


def build_index(run: Run, corpus: Corpus, place: str, report: Report = lambda done, total: None) -> Built:
    """Build or update the index of a corpus.

    Raises UserError for a run that embeds nothing of the corpus, an index of other weights or other data, a place that
    cannot be written, and one that another process writes.
    """
    advice = "wait until it has ended, or name another place with --out"
    with nullcontext() if "://" in place else lock_folder(Path(place), "written", advice):
        return _build_index(run, corpus, place, report)


def _build_index(run: Run, corpus: Corpus, place: str, report: Report) -> Built:
    modalities = available_modalities(corpus, run.processor)
    item = indexed_column(modalities)
    if item is None:
        raise UserError(f"The run '{run.name}' embeds nothing that '{corpus.name}' has.")
    if run.directory is None:
        raise UserError("An index needs a run that is kept in a folder; train it with out=...")
    about = Origin(str(run.directory.resolve()), weights_key(run.model), item, dict(corpus.choices))
    table = open_table(place) if holds_index(place) else None
    if table is not None:
        _check_same(read_origin(table), about, place)
    stored, source = {} if table is None else read_digests(table), IndexRows(corpus)
    reader, added, changed = Reader(corpus, run.processor, memory=0), 0, 0
    digests = ((row, source.digest(row)) for row in range(len(corpus)))
    pending = ((row, digest) for row, digest in digests if stored.get(source.keys[row]) != digest)
    gone = stored.keys() - {*source.keys}
    while some := dict(itertools.islice(pending, CHUNK)):
        rows, examples = reader.read_all(np.array(list(some)))
        unreadable = some.keys() - {*rows.tolist()}
        gone |= stored.keys() & {source.keys[row] for row in unreadable}
        if examples:
            made = source.to_table(
                rows, examples, [some[row] for row in rows.tolist()], vectors_of(run, item, examples)
            )
            old = sum(source.keys[row] in stored for row in rows)
            table = write_rows(place, table, made, about, replacing=old > 0)
            changed, added = changed + old, added + len(rows) - old
        report(max(some) + 1, len(corpus))
    if table is None:
        raise UserError(f"No example of '{corpus.name}' can be read, so there is no index.")
    with user_errors(f"The index {place} cannot be brought up to date"):
        remove_rows(table, sorted(gone))
        if added or changed or gone or lacks_text_index(table):
            arrange(table)
    return Built(added, changed, len(gone), len(stored) - changed - len(gone), reader.skipped)


def _check_same(there: Origin, wanted: Origin, place: str) -> None:
    if there.weights != wanted.weights:
        raise UserError(
            f"The index {place} was made with other weights, those of {there.run}; name another place with --out."
        )
    if there.data != json.loads(json.dumps(wanted.data)):
        raise UserError(f"The index {place} is of other data, {_named(there.data)}; name another place with --out.")


def _named(data: Mapping[str, Any]) -> str:
    return str(data.get("data") or data.get("corpus") or "a mixture")
