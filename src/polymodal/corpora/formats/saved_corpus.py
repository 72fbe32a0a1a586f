"""Corpora that polymodal wrote: `curate`, `caption`, `sample-preferences`."""

from __future__ import annotations

from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.rows import Rows
from polymodal.corpora.saved import is_saved, open_saved

description = "a folder that polymodal wrote"


def matches(data: DataFiles) -> Match:
    return Match.CONTENT if len(data.given) == 1 and is_saved(data.given[0]) else Match.NO


def read(data: DataFiles) -> Rows:
    """Open the folder. Raises UserError when it is damaged."""
    corpus = open_saved(data.given[0])
    return Rows(corpus.table, data.root, corpus.columns, keys=corpus.keys, label=corpus.label)
