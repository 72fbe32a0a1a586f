"""Streaming of Parquet or webdataset shards, on disk or at any fsspec URL, for data larger than memory.

Rows are read in blocks, a Parquet row group or a range of a tar file, and only a few blocks are in memory. Training
shuffles the blocks of all shards, and then the rows of a few consecutive blocks, all by the seed: an order with random
access, so that a run resumes at any example, with any number of processes.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from polymodal.corpora._shards import RowBlock, Shards, by_split, listed, open_shards, sampled
from polymodal.corpora._types import is_number
from polymodal.corpora.corpus import About, Corpus, Part, command_that_shows
from polymodal.corpora.formats._tables import concatenated
from polymodal.corpora.schemas import Found, View, convert, described_columns, find
from polymodal.corpora.schemas import label as label_schema
from polymodal.corpora.user_files import first_line, path_columns
from polymodal.errors import UserError, unknown
from polymodal.modalities import Modality, Table

BLOCKS_TOGETHER = 4  # blocks whose rows are shuffled together
HELD_OUT = 5000  # examples at most of a test or validation split
KEYS = ("__key__", "key", "id")


class MissingData(UserError):
    """A shard became unreadable during training; progress is saved."""


def from_shards(url: str | Sequence[str], **columns: str) -> Corpus:
    """Open data in .parquet or .tar shards: files, a folder, or a pattern with `*` or `{000..123}`.

    url: one or several paths, or URLs that fsspec opens (s3://bucket/*.parquet, https://..., hf://datasets/...).
    columns: names of columns by modality, by default inferred from a sample of the rows. Splits are those that names
    of files or folders state; else the last blocks, at most a tenth or 5,000 examples each, are `validation` and
    `test`. Equal images in two splits are not detected, since that would read everything. Raises UserError, which says
    what was found and what was expected.
    """
    urls = [url] if isinstance(url, str) else list(url)
    try:
        return _opened(urls, columns)
    except UserError as error:
        raise UserError(f"{error}{command_that_shows(urls)}") from error


def _opened(urls: list[str], columns: dict[str, str]) -> Corpus:
    system, paths, root = _listed(urls)
    paths, stated = by_split(paths, root)
    shards = open_shards(system, paths)
    if not shards.blocks:
        raise UserError(f"The shards at {urls[0]} have no rows.")
    local = "file" in system.protocol or "local" in system.protocol
    try:
        sample = concatenated(
            [shards.read(block, shards.schema.names).slice(0, 100) for block in sampled(shards.blocks)]
        )
        inferred = _inferred(shards, sample, Path(paths[0]).parent if local else Path(), columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"The shards at {urls[0]} cannot be read: {first_line(error)}") from error
    kinds = {name: column.modality for name, column in inferred.columns.items()}
    _check_columns(kinds, sample, local, urls[0])
    _check_folders(kinds, sample, paths, urls[0])
    keys = next((name for name in KEYS if name in sample.column_names), None)
    blocks = _Blocks(shards, inferred, keys)
    names = [url if "://" in url else os.path.abspath(os.path.expanduser(url)) for url in urls]
    return Stream(
        about=About(
            name=PurePosixPath(urls[0].rstrip("/")).stem.replace("*", "all"),
            description=f"{blocks.total:,} examples in {len(paths)} shards of {urls[0]}",
            license="the user's own",
            source=urls[0],
            modalities=tuple(dict.fromkeys(type(kind).__name__.lower() for kind in kinds.values())),
        ),
        table=pa.table({}),
        columns=kinds,
        splits=_splits(shards.blocks, blocks.total, stated),
        keys=keys,
        label=inferred.label,
        prompts=inferred.prompts,
        choices={"data": names[0] if len(names) == 1 else names, "columns": dict(columns), "stream": True},
        keeps_decoded=False,
        skipped=shards.skipped,
        split_rule="the names of files or folders" if stated else "",
        notes=(*inferred.notes, *(("The splits are those that files or folders state.",) if stated else ())),
        blocks=blocks,
    )


def _listed(urls: Sequence[str]) -> tuple[Any, list[str], str]:
    """Return the file system, the shards, and the path of the first URL on it."""
    paths: list[str] = []
    try:
        opened = [fsspec.core.url_to_fs(os.path.expanduser(one)) for one in urls]
        for (system, root), one in zip(opened, urls, strict=True):
            if system is not opened[0][0]:
                raise UserError(f"{urls[0]} and {one} are on two file systems; name the shards of one.")
            shards = listed(system, root)
            if not shards:
                raise UserError(f"There is no .parquet or .tar shard at {one}{_held_instead(system, root)}.")
            paths += shards
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{one if paths else urls[0]} cannot be opened: {first_line(error)}") from error
    return opened[0][0], list(dict.fromkeys(paths)), opened[0][1]


def _held_instead(system: Any, root: str) -> str:
    if not system.exists(root):
        return ""
    names = [root] if system.isfile(root) else list(system.find(root))
    suffixes = sorted({PurePosixPath(name).suffix for name in names} - {""})
    return f", but {', '.join(suffixes[:5])}, which cannot be streamed; leave out --stream" if suffixes else ""


def _inferred(shards: Shards, sample: pa.Table, root: Path, named: dict[str, str]) -> Found:
    """Find the columns by a sample; the classes of a label column by all of its values."""
    label = named.get("label")
    if label is not None and label not in sample.column_names:
        raise unknown("column", label, sample.column_names)
    by_name = {name.lower(): name for name in reversed(sample.column_names)}
    usual = [by_name[name] for name in label_schema.USUAL if name in by_name]
    whole = shards.whole([label] if label else usual)
    if label is not None and label not in whole.column_names:
        raise UserError(
            f"The column '{label}' has lists, records, or too many different values for classes; name another one with "
            "--label-column, or leave out --stream."
        )
    labels = None
    if whole.num_columns:
        labels = label_schema.find(View(whole, root, tuple(whole.column_names), label))
    sample = sample.drop_columns([name for name in usual if name not in whole.column_names and name != label])
    others = {option: column for option, column in named.items() if option != "label"}
    if labels is None:
        return _found(shards, sample, root, others, shards.modalities)
    already = shards.modalities | {name: column.modality for name, column in labels.columns.items()}
    inferred = _found(shards, sample, root, others, already)
    return Found(
        {**inferred.columns, **labels.columns},
        (*inferred.uses, *labels.uses),
        labels.label,
        {**inferred.prompts, **labels.prompts},
        inferred.notes,
    )


def _found(
    shards: Shards, sample: pa.Table, root: Path, named: dict[str, str], already: Mapping[str, Modality]
) -> Found:
    """Find the columns by a sample; the categories of table rows by all of their values."""
    inferred = find(sample, root, named, already, pa.table({}))
    tables = [column.modality for column in inferred.columns.values() if isinstance(column.modality, Table)]
    written = [
        name
        for table in tables
        for name in (*table.categorical, *table.numeric)
        if name in sample.column_names and not is_number(sample.schema.field(name).type)
    ]
    if not written:
        return inferred
    whole = shards.whole(written)
    sample = sample.drop_columns([name for name in written if name not in whole.column_names])
    return find(sample, root, named, already, whole)


def _check_columns(kinds: dict[str, Modality], sample: pa.Table, local: bool, url: str) -> None:
    if not kinds:
        raise UserError(
            f"No column of {url} has images, sounds, texts, or anything else that methods learn from; the columns are "
            f"{described_columns(sample)}. Name one, for example with --image-column COLUMN."
        )
    for name in path_columns(sample, kinds) if not local else ():
        raise UserError(
            f"The column '{name}' of {url} has paths of files, which are not read from a URL; copy the files here, "
            "or put their bytes into the shards."
        )


def _check_folders(kinds: dict[str, Modality], sample: pa.Table, paths: Sequence[str], url: str) -> None:
    """Raise UserError for relative paths in shards of several folders, which start at different ones."""
    if len({PurePosixPath(path).parent for path in paths}) < 2:
        return
    for name in path_columns(sample, kinds):
        if not all(os.path.isabs(value) for value in sample.column(name).drop_null().to_pylist()):
            raise UserError(
                f"The column '{name}' has relative paths, and the shards at {url} are in several folders; put the "
                "shards into one, or leave out --stream."
            )


def _splits(blocks: Sequence[RowBlock], total: int, stated: dict[str, str] | None) -> dict[str, np.ndarray]:
    if stated is None:
        train, validation = _held_out(blocks, total)
        bounds = {"train": (0, train), "validation": (train, validation), "test": (validation, total)}
        return {name: np.arange(*bound) for name, bound in bounds.items()}
    rows: dict[str, list[np.ndarray]] = {}
    for block in blocks:
        rows.setdefault(stated[block.shard], []).append(np.arange(block.first, block.first + block.count))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


@dataclass(frozen=True, kw_only=True, repr=False)
class Stream(Corpus):
    """Corpus of shards that are streamed; see `from_shards`."""

    blocks: _Blocks

    def __len__(self) -> int:
        return self.blocks.total

    def has(self, *columns: str) -> np.ndarray:
        """Return that each row may have a value: which lack one is known when they are read."""
        return np.ones(len(self), dtype=bool)

    def raw(self, row: int, column: str) -> Any:
        return self.blocks.value(int(row), column)

    def raw_values(self, rows: np.ndarray, column: str) -> list[Any]:
        return [self.raw(row, column) for row in rows]

    def stored_lengths(self, column: str) -> np.ndarray:
        raise UserError(
            "--length-bucketing needs to know all lengths, which shards that are read where they lie do not tell."
        )

    def key(self, row: int) -> str:
        block = self.blocks.of(int(row))
        name = self.raw(row, self.keys) if self.keys else int(row) - block.first
        return f"{PurePosixPath(block.shard).name}/{name}"

    def sample(self, split: str, count: int) -> np.ndarray:
        """Return the first rows of a split, from blocks that are read anyway."""
        return self.rows(split)[: min(count, sum(block.count for block in self.blocks.blocks[:BLOCKS_TOGETHER]))]

    def parts(self, split: str) -> list[Part]:
        rows = self.rows(split)
        if split != "train":
            return [Part(rows, 1.0)]
        return [Part(rows, 1.0, lambda seed: BlockOrder(self.blocks.blocks, len(rows), seed))]


class BlockOrder(Sequence):
    """Endless order of row indices with random access, different in every epoch.

    Blocks are shuffled, and then the rows of each `BLOCKS_TOGETHER` blocks, so that few are in memory at once.
    """

    def __init__(self, blocks: Sequence[RowBlock], total: int, seed: int):
        """Build the order. total: number of rows to order; later rows are excluded."""
        self.blocks = [
            replace(block, count=min(block.count, total - block.first)) for block in blocks if block.first < total
        ]
        self.total = total
        self.seed = seed
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = (
            None  # newest epoch: order of blocks, first positions of windows
        )
        self._window: tuple[tuple[int, int], np.ndarray] | None = None  # rows of the newest window

    def __len__(self) -> int:
        return self.total << 20

    def __getitem__(self, index: Any) -> Any:
        epoch, position = divmod(int(index), self.total)
        order, begins = self._order_of(epoch)
        window = int(np.searchsorted(begins, position, side="right")) - 1
        return self._rows_of(epoch, window, order)[position - begins[window]]

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.blocks))
            begins = np.cumsum([0, *(self.blocks[index].count for index in order)])
            self._epoch = epoch, order, np.append(begins[:-1][::BLOCKS_TOGETHER], begins[-1])
        return self._epoch[1:]

    def _rows_of(self, epoch: int, window: int, order: np.ndarray) -> np.ndarray:
        if self._window is None or self._window[0] != (epoch, window):
            chosen = order[window * BLOCKS_TOGETHER : (window + 1) * BLOCKS_TOGETHER]
            rows = [np.arange(b.first, b.first + b.count) for b in (self.blocks[index] for index in chosen)]
            shuffled = np.random.default_rng([self.seed, epoch, window]).permutation(np.concatenate(rows))
            self._window = (epoch, window), shuffled
        return self._window[1]


class _Blocks:
    """Blocks of all shards, with an LRU cache of the last ones."""

    def __init__(self, shards: Shards, inferred: Found, keys: str | None):
        self.shards, self.inferred = shards, inferred
        self.blocks = shards.blocks
        needed = {*inferred.uses, *inferred.columns, *([keys] if keys else ())}
        self.columns = [name for name in shards.schema.names if name in needed]
        self.firsts = np.array([block.first for block in self.blocks])
        self.total = self.blocks[-1].first + self.blocks[-1].count
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self.firsts, row, side="right")) - 1

    def of(self, row: int) -> RowBlock:
        return self.blocks[self._number(row)]

    def value(self, row: int, column: str) -> Any:
        index = self._number(row)
        return self.rows(index).column(column)[row - self.blocks[index].first].as_py()

    def rows(self, number: int) -> pa.Table:
        """Return all rows of a block. Raises MissingData when it cannot be read any more."""
        with self._lock:
            if number not in self._kept:
                block = self.blocks[number]
                try:
                    self._kept[number] = convert(self.shards.read(block, self.columns), self.inferred)
                except (OSError, pa.ArrowException) as error:
                    raise MissingData(
                        f"The shard {block.shard} cannot be read any more: {first_line(error)}"
                    ) from error
                while len(self._kept) > 2 * BLOCKS_TOGETHER:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]


def _held_out(blocks: Sequence[RowBlock], total: int) -> tuple[int, int]:
    """Return where validation and test begin: at block boundaries, unless there are too few."""
    each = min(max(total // 10, min(1, total // 3)), HELD_OUT)  # of few rows, one
    targets = total - 2 * each, total - each
    at_blocks = [max(block.first for block in blocks if block.first <= target) for target in targets]
    begins = at_blocks if total // 2 < at_blocks[0] < at_blocks[1] else targets
    return begins[0], begins[1]
