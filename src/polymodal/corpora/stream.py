"""Streaming of Parquet or webdataset shards, on disk or at any fsspec URL, for data larger than memory.

Rows are read in blocks, a Parquet row group or a range of a tar file, and only a few blocks are in memory. Training
shuffles the blocks of all shards, and then the rows of a few consecutive blocks, all by the seed: an order with random
access, so that a run resumes at any example, with any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.corpora._cache import cache_directory
from polymodal.corpora.corpus import About, Corpus, Part
from polymodal.corpora.schemas import described_columns, find
from polymodal.corpora.user_files import first_line
from polymodal.errors import UserError

BLOCKS_TOGETHER = 4  # blocks whose rows are shuffled together
TAR_BLOCK = 512  # examples of a tar file that count as a block
HELD_OUT = 5000  # examples at most of a test or validation split


class MissingData(UserError):
    """A shard became unreadable during training; progress is saved."""


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read together. where: index of the row group, or the members of each example in a tar file."""

    shard: str
    first: int
    count: int
    where: Any


def from_shards(url: str, **columns: str) -> Corpus:
    """Open image-caption pairs in .parquet or .tar shards: a file, a folder, or a pattern with `*`.

    url: a path, or any URL that fsspec opens (s3://bucket/*.parquet, https://..., hf://datasets/...). columns:
    names of columns by modality, by default inferred. The last blocks, at most a tenth or 5,000 examples each, are
    `validation` and `test`; equal images in two splits are not detected, since that would read everything. Raises
    UserError, which says what was found and what was expected.
    """
    try:
        system, root = fsspec.core.url_to_fs(os.path.expanduser(url))
        shards = _shards(system, root)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{url} cannot be opened: {first_line(error)}") from error
    if not shards:
        raise UserError(f"There is no .parquet or .tar shard at {url}.")
    blocks: list[RowBlock] = []
    for shard in shards:
        blocks_of = _row_groups if shard.endswith(".parquet") else _members
        first = blocks[-1].first + blocks[-1].count if blocks else 0
        try:
            blocks += blocks_of(system, shard, first)
        except (OSError, pa.ArrowException, tarfile.TarError) as error:
            raise UserError(f"The shard {shard} cannot be read: {first_line(error)}") from error
    if not blocks:
        raise UserError(f"The shards at {url} have no rows.")
    total = blocks[-1].first + blocks[-1].count
    blocks_read = _Blocks(system, blocks)
    sample = pa.Table.from_pylist(blocks_read.rows(0)[:100])
    found = find(sample, Path(), columns)
    kinds = {name: column.modality for name, column in found.columns.items() if column.convert is None}
    for kind in ("image", "text"):
        if kind not in {type(modality).__name__.lower() for modality in kinds.values()}:
            raise UserError(
                f"No column of {url} has {kind}s; the columns are {described_columns(sample)}. Name one with "
                f"--{kind}-column COLUMN."
            )
    keys = next((name for name in ("__key__", "key", "id") if name in sample.column_names), None)
    train, validation = _held_out(blocks, total)
    return Stream(
        about=About(
            name=PurePosixPath(url.rstrip("/")).stem.replace("*", "all"),
            description=f"{total:,} pairs in {len(shards)} shards of {url}",
            license="the user's own",
            source=url,
            modalities=("image", "text"),
        ),
        table=pa.table({}),
        columns=kinds,
        splits={
            "train": np.arange(train),
            "validation": np.arange(train, validation),
            "test": np.arange(validation, total),
        },
        keys=keys,
        choices={"data": url if "://" in url else os.path.abspath(url), "columns": dict(columns), "stream": True},
        keeps_decoded=False,
        blocks=blocks_read,
    )


@dataclass(frozen=True, kw_only=True)
class Stream(Corpus):
    """Corpus of shards that are streamed; see `from_shards`."""

    blocks: _Blocks

    def __len__(self) -> int:
        return self.blocks.total

    def raw(self, row: int, column: str) -> Any:
        return self.blocks.row(int(row))[column]

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

    def __init__(self, system: Any, blocks: list[RowBlock]):
        self.system = system
        self.blocks = blocks
        self.firsts = np.array([block.first for block in blocks])
        self.total = blocks[-1].first + blocks[-1].count
        self._kept: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self.firsts, row, side="right")) - 1

    def of(self, row: int) -> RowBlock:
        return self.blocks[self._number(row)]

    def row(self, row: int) -> dict[str, Any]:
        index = self._number(row)
        return self.rows(index)[row - self.blocks[index].first]

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return all rows of a block. Raises MissingData when it cannot be read any more."""
        with self._lock:
            if number not in self._kept:
                block = self.blocks[number]
                read = _read_row_group if block.shard.endswith(".parquet") else _read_members
                try:
                    self._kept[number] = read(self.system, block)
                except (OSError, pa.ArrowException) as error:
                    raise MissingData(
                        f"The shard {block.shard} cannot be read any more: {first_line(error)}"
                    ) from error
                while len(self._kept) > 2 * BLOCKS_TOGETHER:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]


def _shards(system: Any, root: str) -> list[str]:
    if system.isdir(root):
        paths = [*system.glob(f"{root}/*.parquet"), *system.glob(f"{root}/*.tar")]
    elif "*" in root:
        paths = system.glob(root)
    else:
        paths = [root] if system.exists(root) else []
    return sorted(path for path in paths if path.endswith((".parquet", ".tar")))


def _row_groups(system: Any, shard: str, first: int) -> list[RowBlock]:
    with system.open(shard) as file:
        metadata = pq.read_metadata(file)
    blocks = []
    for group in range(metadata.num_row_groups):
        count = metadata.row_group(group).num_rows
        blocks.append(RowBlock(shard, first, count, group))
        first += count
    return blocks


def _read_row_group(system: Any, block: RowBlock) -> list[dict[str, Any]]:
    with system.open(block.shard) as file:
        return pq.ParquetFile(file).read_row_group(block.where).to_pylist()


def _members(system: Any, shard: str, first: int) -> list[RowBlock]:
    """Index the blocks of a tar file by its table of members, which is cached."""
    info = system.info(shard)
    identity = json.dumps([shard, info.get("size"), str(info.get("mtime") or info.get("LastModified") or "")])
    index_file = cache_directory() / "shards" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if index_file.is_file():
        examples = json.loads(index_file.read_text())
    else:
        members: dict[str, dict[str, tuple[int, int]]] = {}
        with system.open(shard) as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    key, _, suffix = name.partition(".")
                    key = f"{folder}/{key}" if folder else key
                    members.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
        examples = list(members.items())
        index_file.parent.mkdir(parents=True, exist_ok=True)
        aside = index_file.with_suffix(f".{os.getpid()}.partial")
        aside.write_text(json.dumps(examples))
        os.replace(aside, index_file)
    return [
        RowBlock(shard, first + start, len(examples[start : start + TAR_BLOCK]), examples[start : start + TAR_BLOCK])
        for start in range(0, len(examples), TAR_BLOCK)
    ]


def _read_members(system: Any, block: RowBlock) -> list[dict[str, Any]]:
    """Read the range from the first to the last member at once, and split it."""
    spans = [span for _, members in block.where for span in members.values()]
    begin, end = min(offset for offset, _ in spans), max(offset + size for offset, size in spans)
    with system.open(block.shard) as file:
        file.seek(begin)
        data = file.read(end - begin)
    if len(data) < end - begin:
        raise OSError("it is shorter than it was")
    columns = sorted({suffix for _, members in block.where for suffix in members})
    rows = []
    for key, members in block.where:
        row: dict[str, Any] = {"__key__": key, **dict.fromkeys(columns)}
        for suffix, (offset, size) in members.items():
            value = data[offset - begin : offset - begin + size]
            row[suffix] = value.decode(errors="replace") if suffix in ("txt", "text", "caption", "cls") else value
        rows.append(row)
    return rows


def _held_out(blocks: list[RowBlock], total: int) -> tuple[int, int]:
    """Return where validation and test begin: at block boundaries, unless there are too few."""
    each = min(total // 10, HELD_OUT)
    targets = total - 2 * each, total - each
    at_blocks = [max(block.first for block in blocks if block.first <= target) for target in targets]
    begins = at_blocks if total // 2 < at_blocks[0] < at_blocks[1] else targets
    return begins[0], begins[1]
