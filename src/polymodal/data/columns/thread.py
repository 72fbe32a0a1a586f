"""Threads of question-and-answer sites, with the posts that they are linked to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int

from polymodal.corpora._splits import Groups
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS
from polymodal.data.columns.text import TextColumn, TokenizedColumn
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Threads
from polymodal.modalities.paired_tokens import PairedTokens, paired_tokens
from polymodal.modalities.thread import DUPLICATE, PARTS, Link, Thread

MAX_KEPT = 3  # corpora whose links are kept, besides the last
ATTEMPTS = 50  # other threads that are looked at for a part that they may lack


class Linked(NamedTuple):
    """The thread of a pair's second post. row: its row. label: index into `modalities.thread.LABELS`."""

    row: int
    label: int
    thread: Thread


class OtherThreads:
    """The training threads that are no duplicates of a thread, directly or through others; read when sampled."""

    def __init__(self, corpus: Corpus, rows: np.ndarray, clusters: np.ndarray, cluster: int):
        """rows: of training. clusters: of every row of the corpus. cluster: that is left out."""
        self._corpus, self._rows, self._clusters, self._cluster = corpus, rows, clusters, cluster

    def sample(self, part: str, other_than: str, rng: np.random.Generator) -> str | None:
        """Sample a part, such as `answer_text`, of another thread; None where no thread that was looked at has one.

        other_than: the right part; an equal text is no negative.
        """
        texts = (getattr(thread, part) for thread in self._threads(rng))
        return next((text for text in texts if text and text != other_than), None)

    def sample_thread(self, rng: np.random.Generator) -> Thread | None:
        """Sample another thread; None where there is none."""
        return next(self._threads(rng), None)

    def _threads(self, rng: np.random.Generator) -> Iterator[Thread]:
        column = self._corpus.column_with(Threads)
        for _ in range(ATTEMPTS if len(self._rows) else 0):
            row = int(self._rows[rng.integers(len(self._rows))])
            if self._clusters[row] == self._cluster:
                continue
            try:
                yield self._corpus.value(row, column)
            except UnreadableExample:
                continue


class ThreadExample(NamedTuple):
    """A thread with its links, of training only to training, and the other threads, of which negatives are sampled.

    cluster: equal for duplicates, and for duplicates of duplicates.
    """

    thread: Thread
    linked: tuple[Linked, ...] = ()
    others: OtherThreads | None = None
    cluster: int = -1


class ThreadColumn(TokenizedColumn):
    """Threads; posts are collated as [CLS] text [SEP] code [SEP]."""

    reads: ClassVar[tuple[type, ...]] = (Threads,)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Any]) -> ThreadColumn:
        """Learn a tokenizer from all parts of training threads. Raises UserError where they are empty."""
        tokenizer = self.source.tokenizer(text for corpus in corpora for text in _texts(corpus))
        return type(self)(self.source, tokenizer)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> ThreadColumn:
        return type(self)(self.source, self.source.load_tokenizer(directory))

    def load(self, corpus: Corpus, row: int) -> ThreadExample:
        column = corpus.column_with(Threads)
        thread, graph = corpus.value(row, column), self._graph(corpus)
        linked = [*_readable(corpus, column, graph.of(row, thread.links))]
        training = corpus.splits.get("train", np.zeros(0, np.int64))
        others = OtherThreads(corpus, training, graph.clusters, int(graph.clusters[row]))
        return ThreadExample(thread, tuple(linked), others, int(graph.clusters[row]))

    def __call__(self, values: list[Any]) -> PairedTokens:
        """values: examples, threads, or posts as pairs of text and code."""
        posts = [value.thread if isinstance(value, ThreadExample) else value for value in values]
        pairs = [value.post if isinstance(value, Thread) else (str(value[0]), str(value[1])) for value in posts]
        return paired_tokens(pairs, self.tokenizer, self.tokenizer.context_length)

    def _graph(self, corpus: Corpus) -> _Links:
        """The links between the rows of a corpus, read once; stages and validation select splits of their own."""
        kept: list[_Links] = vars(self).setdefault("_kept", [])
        for one in kept:
            if one.table is corpus.table and one.splits is corpus.splits:
                return one
        same = next((one for one in kept if one.table is corpus.table), None)
        self._kept = [*kept[-MAX_KEPT:], _Links(corpus, same)]
        return self._kept[-1]


class QueryColumn(TextColumn):
    """Texts alone, such as queries in words, by the tokenizer of the threads."""

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Any]) -> QueryColumn:
        return type(self)(self.source, fitted["thread"].tokenizer)


class _Links:
    """rows: row by key. clusters: of each row. split: number of the split of each row, -1 for none. train: of these."""

    def __init__(self, corpus: Corpus, same: _Links | None = None):
        """same: of the same table with other splits."""
        self.table, self.splits = corpus.table, corpus.splits
        self.split = np.full(len(corpus), -1)
        self.rows: dict[str, int]
        self.clusters: np.ndarray
        for number, rows in enumerate(corpus.splits.values()):
            self.split[rows] = number
        self.train = [*corpus.splits].index("train") if "train" in corpus.splits else None
        if same is not None:
            self.rows, self.clusters = same.rows, same.clusters
            return
        self.rows = {corpus.key(row): row for row in reversed(range(len(corpus)))}
        groups = Groups(len(corpus))
        for row, value in enumerate(corpus.raw_values(np.arange(len(corpus)), corpus.column_with(Threads))):
            for link in (value or {}).get("links") or ():
                if link["label"] == DUPLICATE and str(link["key"]) in self.rows:
                    groups.join([row, self.rows[str(link["key"])]])
        self.clusters = np.array([groups.root(row) for row in range(len(corpus))])

    def of(self, row: int, links: Sequence[Link]) -> Iterator[tuple[int, int]]:
        """Yield row and label of each link; of a training thread not those to threads of other splits."""
        for link in links:
            other = self.rows.get(link.key, row)
            if other != row and (self.split[row] != self.train or self.split[other] in (self.train, -1)):
                yield other, link.label


def _readable(corpus: Corpus, column: str, links: Iterable[tuple[int, int]]) -> Iterator[Linked]:
    """Yield the linked threads; one without a question is left out alone, and not what names it."""
    for other, label in links:
        try:
            yield Linked(other, label, corpus.value(other, column))
        except UnreadableExample:
            continue


def _texts(corpus: Corpus) -> Iterator[str]:
    if not corpus.has_modality(Threads):
        return
    column = corpus.column_with(Threads)
    for value in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
        yield from (text for part in PARTS if value and (text := value.get(part)))


def linked_rows(corpus: Corpus, labels: Sequence[int]) -> Int[np.ndarray, " rows"]:
    """Return the training rows that have a link with one of the labels.

    Raises UserError where there is none.
    """
    rows = corpus.rows("train")
    values = corpus.raw_values(rows, corpus.column_with(Threads))
    having = [any(link["label"] in labels for link in (value or {}).get("links") or ()) for value in values]
    if not any(having):
        raise UserError(
            f"No training post of '{corpus.name}' is the first of a pair of duplicates; add a table of pairs with the "
            "columns first, second and label beside the posts, or pre-train only (--finetune-fraction 0)."
        )
    return rows[np.array(having)]
