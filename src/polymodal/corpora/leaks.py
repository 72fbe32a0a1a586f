"""Leaks: equal or nearly equal examples in two splits of users' data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from polymodal.corpora._splits import difference_hash, thumbnail
from polymodal.corpora._user_splits import CONTENT, caption_hashes, content_hashes
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Text

MAX_IMAGES = 20_000  # that are compared
MAX_BITS = 6  # of 64 in which the difference hashes of near-duplicates differ
MAX_DIFFERENCE = 5.0  # of 0-255, the mean over their thumbnails
EXAMPLES = 3


@dataclass(frozen=True)
class Leak:
    """Rows of `split` that are in another split, too.

    kind: of what is there, such as "an equal image". keys: of up to three pairs, first of `split`, then of `other`.
    """

    kind: str
    split: str
    other: str
    rows: tuple[int, ...]
    keys: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        pairs = ", ".join(f"{key} and {other}" for key, other in self.keys)
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows):,} rows"
        have = "has" if len(self.rows) == 1 else "have"
        return f"{rows} of {self.split} {have} {self.kind} in {self.other} ({pairs})."


def find_leaks(corpus: Corpus, max_images: int = MAX_IMAGES) -> tuple[list[Leak], str]:
    """Return the leaks between splits, and a sentence about what was not compared; '' if all was.

    Equal media and equal captions are looked for in all rows. Near-duplicate images, such as the same image in another
    size or format, in at most `max_images`, of which half are held out.
    """
    if corpus.table.num_rows == 0:
        return [], "Leaks between splits are not looked for in shards that are streamed."
    if len(corpus.splits) < 2:
        return [], ""
    leaks: list[Leak] = []
    for name, kind in corpus.columns.items():
        keyed = None
        if type(kind).__name__ in CONTENT:
            keyed = content_hashes(corpus.table.column(name), getattr(kind, "root", None) or Path())
        elif isinstance(kind, Text):
            keyed = caption_hashes(corpus.table.column(name))
        if keyed is not None:
            what = "an equal caption" if isinstance(kind, Text) else f"an equal {type(kind).__name__.lower()}"
            leaks += _equal(corpus, what, *keyed)
    if not corpus.has_modality(Image):
        return leaks, ""
    column = corpus.column_with(Image)
    rows = _compared(corpus, column, max_images)
    exact = {row for leak in leaks if leak.kind == "an equal image" for row in leak.rows}
    leaks += _near_duplicates(corpus, column, rows, exact)
    total = int(corpus.has(column)[np.unique(np.concatenate(list(corpus.splits.values())))].sum())
    compared = sum(map(len, rows.values()))
    note = f"Near-duplicates were looked for among {compared:,} of {total:,} images." if compared < total else ""
    return leaks, note


def _pairs_of_splits(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Each two splits, the one that is trained on last."""
    order = sorted(corpus.splits, key=lambda split: (split == "train", split == "validation"))
    yield from combinations(order, 2)


def _equal(corpus: Corpus, kind: str, rows: np.ndarray, hashes: np.ndarray) -> Iterator[Leak]:
    for split, other in _pairs_of_splits(corpus):
        here, there = np.isin(rows, corpus.splits[split]), np.isin(rows, corpus.splits[other])
        common = here & np.isin(hashes, hashes[there])
        if common.any():
            pairs = tuple(_some_pairs(corpus, rows, hashes, common, there))
            yield Leak(kind, split, other, tuple(np.unique(rows[common]).tolist()), pairs)


def _some_pairs(
    corpus: Corpus, rows: np.ndarray, hashes: np.ndarray, common: np.ndarray, there: np.ndarray
) -> Iterator[tuple[str, str]]:
    places = np.flatnonzero(common)
    for place in places[np.unique(rows[places], return_index=True)[1][:EXAMPLES]]:
        partner = rows[there & (hashes == hashes[place])][0]
        yield corpus.key(int(rows[place])), corpus.key(int(partner))


def _compared(corpus: Corpus, column: str, max_images: int) -> dict[str, np.ndarray]:
    """Return the rows by split, evenly spaced where there are more than `max_images`."""
    present = corpus.has(column)
    rows = {split: held[present[held]] for split, held in corpus.splits.items()}
    evaluated = sum(len(held) for split, held in rows.items() if split != "train")
    trained = sum(map(len, rows.values())) - evaluated
    of_train = max(max_images // 2, max_images - evaluated)
    of_others = max(max_images - min(trained, of_train), 1)
    limits = {split: of_others * len(held) // max(evaluated, 1) for split, held in rows.items()} | {"train": of_train}
    return {split: held[:: -(-len(held) // max(limits[split], 1)) or 1] for split, held in rows.items()}


def _near_duplicates(corpus: Corpus, column: str, rows: dict[str, np.ndarray], exact: set[int]) -> Iterator[Leak]:
    looks = {split: _looks(corpus, column, held) for split, held in rows.items()}
    for split, other in _pairs_of_splits(corpus):
        pairs = [pair for pair in _alike(looks[split], looks[other]) if pair[0] not in exact]
        if pairs:
            keys = tuple((corpus.key(row), corpus.key(partner)) for row, partner in pairs[:EXAMPLES])
            yield Leak("a near-duplicate image", split, other, tuple(row for row, _ in pairs), keys)


@dataclass(frozen=True)
class _Looks:
    """What near-duplicates are found by: rows, difference hashes of 64 bits, and thumbnails."""

    rows: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray


def _looks(corpus: Corpus, column: str, rows: np.ndarray) -> _Looks:
    def look(row: int) -> tuple[int, np.uint64, np.ndarray] | None:
        try:
            image = corpus.value(row, column)
            image.draft("RGB", (64, 64))  # JPEG is decoded in a reduced size
            small = thumbnail(image)
        except (UnreadableExample, OSError, SyntaxError, ValueError):
            return None
        return row, difference_hash(small), small.astype(np.uint8).reshape(-1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = [one for one in pool.map(look, rows.tolist()) if one is not None]
    if not looked:
        return _Looks(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty((0, 768), np.uint8))
    numbers, hashes, thumbnails = zip(*looked, strict=True)
    return _Looks(np.array(numbers), np.array(hashes, np.uint64), np.stack(thumbnails))


def _alike(these: _Looks, others: _Looks) -> Iterator[tuple[int, int]]:
    """Each row of these that has a near-duplicate among others, with that."""
    for row, bits, small in zip(these.rows, these.hashes, these.thumbnails, strict=True):
        near = np.flatnonzero(np.bitwise_count(others.hashes ^ bits) <= MAX_BITS)
        if len(near):
            difference = np.abs(others.thumbnails[near].astype(np.int16) - small).mean(1)
            nearest = int(difference.argmin())
            if difference[nearest] <= MAX_DIFFERENCE:
                yield int(row), int(others.rows[near[nearest]])
