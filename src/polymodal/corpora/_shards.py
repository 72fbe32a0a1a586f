"""Shards of Parquet and tar, on any file system that fsspec knows: which rows they have, and reading some of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.corpora._cache import cache_directory, disk_error
from polymodal.corpora._json_members import JsonGatherer, JsonMembers, fields_of_rows, listed_values
from polymodal.corpora._types import fitted, merged_type, plain_type
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import braces, is_accompanying, splits_of
from polymodal.corpora.formats._tables import cast_table
from polymodal.corpora.formats._tar import LABELS, TEXTS, columns_of, index_tar, is_small, lacking, values_of
from polymodal.corpora.formats.webdataset import member_modalities
from polymodal.errors import UserError
from polymodal.modalities import Modality

PARQUET, TAR = (".parquet", ".pq"), (".tar", ".tar.gz", ".tgz")
TAR_BLOCK = 512  # examples of a tar file that count as a block
SAMPLE = 100  # rows of a block that are looked at
SAMPLED = 3  # blocks
INDEX = 3  # version of the cached tables of members


@dataclass(frozen=True)
class RowBlock:
    """Rows that are read together. where: index of the row group, or the members of each example in a tar file."""

    shard: str
    first: int
    count: int
    where: Any


class Shards(Protocol):
    """Shards of one kind. schema: of the rows of all of them, as far as the sample tells. modalities: those that the
    format states."""

    blocks: list[RowBlock]
    schema: pa.Schema
    modalities: dict[str, Modality]
    skipped: tuple[Skipped, ...]

    def read(self, block: RowBlock, columns: Sequence[str]) -> pa.Table: ...

    def whole(self, columns: Sequence[str]) -> pa.Table:
        """Return all rows of those columns that can be read without the others."""
        ...


def listed(system: Any, root: str) -> list[str]:
    """Return the shards of a file, a folder with those below it, or a pattern. A path that exists is never a pattern.

    Metadata that img2dataset writes beside tar files is left out. Raises UserError for shards of both kinds.
    """
    paths = [path for path in _paths(system, root) if path.lower().endswith((*PARQUET, *TAR))]
    names = [(path, PurePosixPath(path).name) for path in paths]
    paths = sorted(path for path, name in names if not name.startswith(".") and not is_accompanying(name))
    tars = {_stem(path) for path in paths if path.lower().endswith(TAR)}
    if tars:
        paths = [path for path in paths if path.lower().endswith(TAR) or _stem(path) not in tars]
        other = next((path for path in paths if not path.lower().endswith(TAR)), None)
        if other is not None:
            raise UserError(
                f"{root} holds .tar and .parquet shards, such as {other}; name one kind, for example *.tar."
            )
    return paths


def _stem(path: str) -> str:
    return path[: path.rindex("/") + 1] + PurePosixPath(path).name.partition(".")[0] if "/" in path else path


def _paths(system: Any, root: str) -> list[str]:
    if system.exists(root):
        return [root] if system.isfile(root) else list(system.find(root))
    matching: list[str] = []
    for pattern in braces(root):
        if any(mark in pattern for mark in "*?["):
            matching += system.glob(pattern)
        elif system.exists(pattern):
            matching.append(pattern)
        elif pattern != root:
            raise UserError(f"There is no file {pattern}, which {root} stands for.")
    return matching


def by_split(paths: list[str], root: str) -> tuple[list[str], dict[str, str] | None]:
    """Return the shards in the order train, validation, test, and the split that the name of each states, if any."""
    local = {Path("/", path.lstrip("/")): path for path in paths}
    folder = Path("/", root.lstrip("/"))
    stated = splits_of(list(local), folder if len(local) > 1 else folder.parent)
    if stated is None:
        return paths, None
    order = ["train", "validation", "test"]
    return sorted(paths, key=lambda path: order.index(stated[Path("/", path.lstrip("/"))])), {
        path: stated[one] for one, path in local.items()
    }


def open_shards(system: Any, paths: Sequence[str]) -> Shards:
    """Open shards of one kind. Raises UserError, or an error of the file system, for one that cannot be read."""
    return TarShards(system, paths) if paths[0].lower().endswith(TAR) else ParquetShards(system, paths)


class ParquetShards:
    """Parquet files; a block is a row group."""

    def __init__(self, system: Any, paths: Sequence[str]):
        self.system = system
        self.blocks: list[RowBlock] = []
        self.modalities: dict[str, Modality] = {}
        self.skipped: tuple[Skipped, ...] = ()
        types: dict[str, pa.DataType] = {}
        metadata = None
        for path in paths:
            try:
                with system.open(path) as file:
                    opened = pq.ParquetFile(file)
                    schema, described = opened.schema_arrow, opened.metadata
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"The shard {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
            metadata = metadata or schema.metadata
            for field in schema:
                types[field.name] = merged_type(types.get(field.name, pa.null()), plain_type(field.type))
            for group in range(described.num_row_groups):
                first = self.blocks[-1].first + self.blocks[-1].count if self.blocks else 0
                self.blocks.append(RowBlock(path, first, described.row_group(group).num_rows, group))
        self.blocks = [block for block in self.blocks if block.count]
        self.schema = pa.schema(types, metadata=metadata)

    def read(self, block: RowBlock, columns: Sequence[str]) -> pa.Table:
        with self.system.open(block.shard) as file:
            opened = pq.ParquetFile(file)
            present = [name for name in columns if name in opened.schema_arrow.names]
            table = opened.read_row_group(block.where, columns=present)
        wanted = pa.schema([self.schema.field(name) for name in columns], metadata=self.schema.metadata)
        if not present:
            return pa.table([pa.nulls(block.count, field.type) for field in wanted], schema=wanted)
        return cast_table(table, wanted)

    def whole(self, columns: Sequence[str]) -> pa.Table:
        present = [name for name in columns if name in self.schema.names]
        return pa.concat_tables([self.read(block, present) for block in self.blocks]) if present else pa.table({})


class TarShards:
    """Tar files of webdataset; a block is a range of one, read at once."""

    def __init__(self, system: Any, paths: Sequence[str]):
        self.system = system
        self.blocks: list[RowBlock] = []
        self.skipped: tuple[Skipped, ...] = ()
        self._json: list[tuple[JsonMembers, int]] = []
        kinds: dict[frozenset[str], Any] = {}
        for path in paths:
            examples, skipped, held = _indexed(system, path)
            self._json.append((held, len(examples)))
            kinds |= {frozenset(members): (key, members) for key, members in examples}
            self.skipped += skipped + lacking(examples, columns_of(examples), path)
            for start in range(0, len(examples), TAR_BLOCK):
                first = self.blocks[-1].first + self.blocks[-1].count if self.blocks else 0
                some = examples[start : start + TAR_BLOCK]
                self.blocks.append(RowBlock(path, first, len(some), some))
        self.columns = columns_of(kinds.values())
        kind = pa.struct([("__key__", pa.string())])
        for suffix, column in self.columns.items():
            if not is_small(suffix):
                text = suffix.rpartition(".")[2] in TEXTS or suffix in LABELS
                kind = merged_type(kind, pa.struct([(column, pa.string() if text else pa.large_binary())]))
        kind = merged_type(kind, fields_of_rows([held for held, _ in self._json], self.columns))
        self.schema = pa.schema(list(kind))
        self.modalities: dict[str, Modality] = dict(member_modalities(self.schema))

    def read(self, block: RowBlock, columns: Sequence[str]) -> pa.Table:
        rows = self._rows(block)
        arrays = [_array([row.get(name) for row in rows], self.schema.field(name).type) for name in columns]
        return pa.table(arrays, schema=pa.schema([self.schema.field(name) for name in columns]))

    def whole(self, columns: Sequence[str]) -> pa.Table:
        suffixes = {self.columns[suffix]: suffix for suffix in self.columns if suffix in LABELS}
        taken = {*self.columns.values()}
        arrays = {}
        for name in columns:
            if name in suffixes:
                stated = [members.get(suffixes[name]) for block in self.blocks for _, members in block.where]
                arrays[name] = pa.array(stated, pa.string())
            elif (values := listed_values(self._json, name, taken)) is not None:
                arrays[name] = _array(values, self.schema.field(name).type)
        return pa.table(arrays)

    def _rows(self, block: RowBlock) -> list[dict[str, Any]]:
        """Read the range from the first to the last member at once, and split it."""
        spans = [span for _, members in block.where for span in members.values() if isinstance(span, list)]
        begin = min((offset for offset, _ in spans), default=0)
        end = max((offset + size for offset, size in spans), default=0)
        with self.system.open(block.shard) as file:
            file.seek(begin)
            data = file.read(end - begin)
        if len(data) < end - begin:
            raise OSError("it is shorter than it was")
        rows = []
        for key, members in block.where:
            contents = {
                suffix: data[span[0] - begin : span[0] - begin + span[1]] if isinstance(span, list) else span
                for suffix, span in members.items()
            }
            rows.append(values_of(key, contents, self.columns))
        return rows


def sampled(blocks: Sequence[RowBlock]) -> list[RowBlock]:
    """Return the first, the middle and the last block, of a tar file only the first rows of each."""
    places = sorted({0, len(blocks) // 2, len(blocks) - 1}) if blocks else []
    some = [blocks[place] for place in places[:SAMPLED]]
    return [
        RowBlock(block.shard, block.first, min(block.count, SAMPLE), block.where[:SAMPLE])
        if isinstance(block.where, list)
        else block
        for block in some
    ]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return values as an array; those that are of another type than the sample's are missing."""
    try:
        return pa.array([fitted(value, kind) for value in values], kind)
    except (pa.ArrowException, TypeError, AttributeError, ValueError):
        return pa.array([_fitted_or_none(value, kind) for value in values], kind)


def _fitted_or_none(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.scalar(fitted(value, kind), kind).as_py()
    except (pa.ArrowException, TypeError, AttributeError, ValueError):
        return None


def _indexed(system: Any, shard: str) -> tuple[list[Any], tuple[Skipped, ...], JsonMembers]:
    """Return the table of members of a tar file, which is cached, what is left out of it, and what its JSON holds."""
    info = system.info(shard)
    state = [str(info.get(name) or "") for name in ("size", "mtime", "ino", "created", "LastModified", "ETag")]
    identity = json.dumps([INDEX, type(system).__name__, shard, state])
    index_file = cache_directory() / "shards" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    if index_file.is_file():
        examples, skipped, held = json.loads(index_file.read_text(encoding="utf-8"))
        return examples, tuple(Skipped(**one) for one in skipped), JsonMembers.load(held)
    gatherer = JsonGatherer()
    try:
        with system.open(shard) as file:
            if file.read(2) == b"\x1f\x8b":
                raise UserError(
                    f"The shard {shard} is compressed with gzip, of which no part can be read alone: decompress it "
                    "(gunzip), or read it whole, without --stream."
                )
            file.seek(0)
            index = index_tar(file, shard, gatherer.add)
    except OSError as error:
        raise UserError(f"The shard {shard} cannot be read: {' '.join(str(error).split())[:200]}") from error
    skipped = index.damage_report(shard)
    members = gatherer.members([key for key, _ in index.examples])
    try:
        index_file.parent.mkdir(parents=True, exist_ok=True)
        aside = index_file.with_suffix(f".{os.getpid()}.partial")
        aside.write_text(json.dumps([index.examples, [vars(one) for one in skipped], members.dump()]), encoding="utf-8")
        os.replace(aside, index_file)
    except OSError as error:
        raise disk_error(error, index_file.parent) from error
    return index.examples, skipped, members
