"""Corpora that polymodal wrote: `curate`, `caption`, `sample-preferences`."""

from __future__ import annotations

from polymodal.corpora.formats._source import Match, Source
from polymodal.corpora.rows import Rows
from polymodal.corpora.saved import is_saved, open_saved

description = "a folder that polymodal wrote"


def matches(source: Source) -> Match:
    return Match.CONTENT if len(source.given) == 1 and is_saved(source.given[0]) else Match.NO


def read(source: Source) -> Rows:
    """Open the folder. Raises UserError when it is damaged."""
    corpus = open_saved(source.given[0])
    return Rows(corpus.table, source.root, corpus.columns, keys=corpus.keys, label=corpus.label)
