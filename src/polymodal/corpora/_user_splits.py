"""Splits of users' data: as they state it, else by the content of the rows, so that nothing leaks and nothing moves.

A row's split depends on what it holds, and not on its place: rows that are put in front of it, or sorted anew, leave it
where it was. Rows with equal media, an equal caption or an equal `group` are in one split.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from polymodal.corpora._types import fields_of, is_binary, is_list, is_string
from polymodal.corpora.formats._data_files import SPLIT_NAMES
from polymodal.errors import UserError
from polymodal.files import open_regular
from polymodal.modalities import Conversations, Modality, Molecule, Text

TEST, VALIDATION = 0.2, 0.1  # fractions
MAX_GROUP = 0.15  # of the rows; a larger group is trained on
FEW_GROUPS = 100  # of fewer, positions alone would make splits of very different size
MIN_GROUPS = 3  # of equal captions; fewer cannot fill three splits
PROBE = 256  # bytes of a value that are compared first
MAX_FILES = 100_000  # whose content is compared; more are compared by their paths, which is a matter of seconds
# Modalities whose equal values are one thing.
CONTENT = ("Image", "Audio", "Video", "Points", "Images", "Series", "Volume", "Cell", "Graph")
FLAGS = {"1": True, "true": True, "yes": True, "1.0": True, "0": False, "false": False, "no": False, "0.0": False}
GROUPS = ("group", "group_id")


@dataclass(frozen=True)
class Splits:
    """rows: indices by split. rule: what they are by. notes: sentences about them."""

    rows: dict[str, np.ndarray]
    rule: str
    notes: tuple[str, ...] = ()


def user_splits(
    table: pa.Table, columns: Mapping[str, Modality], root: Path, keys: str | None, stated: np.ndarray | None
) -> Splits:
    """Return the splits: of a column `split`, of files and folders (stated), or by content.

    A column may state `test` or `validation` alone, as data to evaluate on does. Raises UserError for one without
    `train` that has other names.
    """
    column = next((name for name in table.column_names if name.lower() in ("split", "partition", "subset")), None)
    if column is not None and is_string(table.schema.field(column).type) and column not in columns:
        return _of_column(table.column(column), column)
    if (flags := _of_flags(table, columns)) is not None:
        return flags
    if stated is not None:
        return Splits(_rows_of(stated), "the names of files or folders")
    return _by_content(table, columns, root, keys)


def _of_column(column: pa.ChunkedArray, name: str) -> Splits:
    values = pc.unique(column).drop_null().to_pylist()
    names = {value: SPLIT_NAMES.get(value.strip().lower(), value.strip().lower()) for value in values}
    if "train" not in names.values() and not (values and {*names.values()} <= {*SPLIT_NAMES.values()}):
        listed = ", ".join(f"'{value}'" for value in values[:6])
        raise UserError(
            f"The column '{name}' has {listed or 'no values'} but no 'train'; write train, validation and test in it, "
            "or rename it."
        )
    split = np.array([names.get(value) for value in column.to_pylist()], dtype=object)
    without = sum(value is None for value in split)
    notes = (f"{without:,} rows without a split are left out.",) if without else ()
    return Splits(_rows_of(split), f"the column '{name}'", notes)


def _of_flags(table: pa.Table, columns: Mapping[str, Modality]) -> Splits | None:
    """Return the splits of columns such as `is_valid` (fastai) and `is_test`, whose other rows are trained on, and of
    `is_train`, whose other rows are the test split; None where there are no such columns, or other values in them."""
    flags: dict[str, tuple[str, np.ndarray]] = {}
    for name in table.column_names:
        split = SPLIT_NAMES.get(name.lower().removeprefix("is_")) if name.lower().startswith("is_") else None
        if split is None or name in columns or is_list(table.schema.field(name).type):
            continue
        values = [str(value).strip().lower() for value in table.column(name).to_pylist()]
        if {*values} <= {*FLAGS}:
            flags[split] = (name, np.array([FLAGS[value] for value in values]))
    if not flags:
        return None
    of_row = np.full(table.num_rows, "train", dtype=object)
    if "train" in flags:
        of_row[~flags["train"][1]] = "test"
    for held_out in ("validation", "test"):
        if held_out in flags:
            of_row[flags[held_out][1]] = held_out
    listed = " and ".join(f"'{name}'" for name, _ in flags.values())
    return Splits(_rows_of(of_row), f"the column{'s' * (len(flags) > 1)} {listed}")


def _rows_of(split: np.ndarray) -> dict[str, np.ndarray]:
    present = [name for name in dict.fromkeys(split.tolist()) if name]
    order = [name for name in ("train", "validation", "test") if name in present]
    return {name: np.flatnonzero(split == name) for name in order + [name for name in present if name not in order]}


def _by_content(table: pa.Table, columns: Mapping[str, Modality], root: Path, keys: str | None) -> Splits:
    total = table.num_rows
    stored = _media(table, columns, root)
    media = [content_hashes(column, folder) for column, folder in stored] + _said(table, columns)
    media += [_plain(table.column(name)) for name, kind in columns.items() if isinstance(kind, Molecule)]
    texts = [caption_hashes(table.column(name)) for name, kind in columns.items() if isinstance(kind, Text)]
    given = [_plain(table.column(name)) for name in table.column_names if name.lower() in GROUPS]
    joined = _components(total, media + texts + given)
    notes: list[str] = []
    if total > MAX_FILES and any(_are_paths(column) for column, _ in stored):
        notes.append(f"Files are more than {MAX_FILES:,}: equal ones under different paths are not looked for.")
    if total >= 10 and media and (np.bincount(joined).max() > total / 2 or joined.max() + 1 < MIN_GROUPS):
        notes.append("Few captions are shared by most rows, so equal captions are in several splits.")
        joined = _components(total, media + given)
    if total >= 10 and given and joined.max() < 2:
        notes.append("There are fewer than three groups, so rows of one group are in several splits.")
        joined = _components(total, media + texts)
    positions = _positions(table, joined, keys, media + texts)
    sizes = np.bincount(joined)
    of_group = _by_position(positions, sizes) if len(sizes) >= FEW_GROUPS else _by_quota(positions, sizes)
    rows = _rows_of(of_group[joined])
    named = {name: rows.get(name, np.empty(0, np.int64)) for name in ("train", "validation", "test")}
    return Splits(named, f"a hash of {f'the column {keys!r}' if keys else 'what rows hold'}", tuple(notes))


def _media(table: pa.Table, columns: Mapping[str, Modality], root: Path) -> list[tuple[pa.ChunkedArray, Path]]:
    """Return the columns of media, those inside of conversations, too, and the folder of the paths of each."""
    media = []
    for name, kind in columns.items():
        column = table.column(name)
        if isinstance(kind, Conversations) and "images" in fields_of(column.type):
            media.append((pc.struct_field(column, "images"), kind.root or root))
        elif type(kind).__name__ in CONTENT:
            media.append((column, getattr(kind, "root", None) or root))
    return media


def _said(table: pa.Table, columns: Mapping[str, Modality]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return row and hash of the messages of each conversation that has no images."""
    hashed = []
    for name, kind in columns.items():
        if isinstance(kind, Conversations):
            column = table.column(name)
            alone = column.is_valid()
            if "images" in fields_of(column.type):
                images = pc.struct_field(column, "images").combine_chunks()
                counts = pc.fill_null(pc.list_value_length(images), 0)
                rows = np.repeat(np.arange(len(images)), counts.to_numpy(zero_copy_only=False))
                flat = pc.list_flatten(images)
                there = pc.not_equal(flat, "") if is_string(flat.type) else flat.is_valid()
                with_image = rows[pc.fill_null(there, False).to_numpy(zero_copy_only=False)]
                alone = pc.and_(alone, pa.array(np.bincount(with_image, minlength=len(images)) == 0))
            messages = pc.struct_field(column, "messages").filter(alone)
            hashes = np.fromiter((_hash(repr(value.as_py())) for value in messages), np.uint64, len(messages))
            hashed.append((np.flatnonzero(alone.to_numpy()), hashes))
    return hashed


def _by_position(positions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the split of each group by its position alone, so that no group moves when others are added."""
    of_group = np.full(len(sizes), "train", dtype=object)
    of_group[positions < TEST + VALIDATION] = "validation"
    of_group[positions < TEST] = "test"
    of_group[sizes > max(1, MAX_GROUP * sizes.sum())] = "train"
    return of_group


def _by_quota(positions: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the split of each of few groups: in the order of their positions, as long as that comes closer to the
    fraction of rows that a split is to have. Of three groups or more, each split has one."""
    of_group = np.full(len(sizes), "train", dtype=object)
    order = [int(group) for group in np.argsort(positions, kind="stable")]
    for split, fraction, groups_left in (("test", TEST, 2), ("validation", VALIDATION, 1)):
        wanted, rows = fraction * sizes.sum(), 0
        for group in [group for group in order if of_group[group] == "train"]:
            left = (of_group == "train").sum() > groups_left
            if left and (abs(rows + sizes[group] - wanted) < abs(rows - wanted)):
                of_group[group] = split
                rows += sizes[group]
        if not rows and len(sizes) >= 3:
            smallest = min((group for group in order if of_group[group] == "train"), key=lambda group: sizes[group])
            of_group[smallest] = split
    return of_group


def _positions(table: pa.Table, joined: np.ndarray, keys: str | None, content: list[Any]) -> np.ndarray:
    """Return a number in [0, 1) for each group, by a hash of its keys, its content, or all that it holds: the
    smallest of its rows."""
    if keys is not None:
        hashes = _hashes(table.column(keys))
    else:
        hashes = np.zeros(table.num_rows, np.uint64)
        left = np.ones(table.num_rows, bool)
        for rows, values in reversed(content):  # a row counts by the first of its values
            there, first = np.unique(rows, return_index=True)
            hashes[there] = values[first]
            left[there] = False
        batches = table.filter(pa.array(left)).to_batches(max_chunksize=64) if left.any() else ()  # may hold images
        hashes[left] = np.fromiter(
            (_hash(repr(row)) for batch in batches for row in batch.to_pylist()), np.uint64, int(left.sum())
        )
    smallest = np.full(joined.max() + 1 if len(joined) else 0, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, joined, hashes)
    return _mixed(smallest) / 2.0**64


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Return other numbers in their place, by SplitMix64: the smallest hashes of groups are smaller than those of
    single rows, which would put most large groups into `test`."""
    mixed = hashes ^ (hashes >> np.uint64(30))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2**64
    mixed = mixed ^ (mixed >> np.uint64(27))
    mixed = mixed * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _components(total: int, keyed: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the group of each row: rows that share a key are in one. keyed: row and key, any number a row."""
    rows = np.concatenate([rows for rows, _ in keyed]) if keyed else np.empty(0, np.int64)
    nodes = [np.unique(values, return_inverse=True)[1] for _, values in keyed]
    offsets = np.cumsum([total, *(int(node.max()) + 1 if len(node) else 0 for node in nodes)])
    ends = np.concatenate([node + offset for node, offset in zip(nodes, offsets, strict=False)]) if nodes else rows
    size = int(offsets[-1])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, ends)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][:total]
    return np.unique(labels, return_inverse=True)[1]


def _hash(value: str | bytes) -> int:
    data = value.encode(errors="surrogatepass") if isinstance(value, str) else value
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    return np.fromiter((_hash(str(value)) for value in column.to_pylist()), np.uint64, len(column))


def _plain(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    valid = column.is_valid().to_numpy()
    return np.flatnonzero(valid), _hashes(column.filter(column.is_valid()))


def caption_hashes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and hash of each caption, in a normal form: NFKC, lower case, single spaces; blank ones are none."""
    array = column.combine_chunks()
    rows = np.arange(len(array))
    if is_list(array.type):
        rows = pc.list_parent_indices(array).to_numpy()
        array = pc.list_flatten(array)
    if "text" in fields_of(array.type):
        array = pc.struct_field(array, "text")
    plain = pc.utf8_lower(pc.utf8_normalize(array, form="NFKC"))
    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(plain), r"\s+", " ")
    keep = pc.fill_null(pc.not_equal(plain, ""), False)
    unique = pc.dictionary_encode(plain.filter(keep))
    hashes = np.fromiter((_hash(text) for text in unique.dictionary.to_pylist()), np.uint64, len(unique.dictionary))
    return rows[keep.to_numpy(zero_copy_only=False)], hashes[unique.indices.to_numpy()]


def content_hashes(column: pa.ChunkedArray, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return row and hash of the content of each value: bytes, or the bytes of the file that a path names.

    An empty path or value has no content. Two values of different length, or with different first or middle bytes, are
    different: only the others are read as a whole. More than `MAX_FILES` paths stand for themselves.
    """
    if _are_paths(column) and len(column) > MAX_FILES:
        pairs = [(row, _hash(str(value))) for row, value in _values(column) if value.is_valid and str(value)]
        return np.array([row for row, _ in pairs], np.int64), np.array([value for _, value in pairs], np.uint64)
    rows, probes, contents = [], [], []
    for row, value in _values(column):
        content = _Content.of(value, root)
        if content is not None:
            rows.append(row)
            probes.append(content.probe())
            contents.append(content)
    hashes = np.array([_hash(probe) for probe in probes], np.uint64)
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    for place in np.flatnonzero(counts[inverse] > 1):
        hashes[place] = _hash(contents[place].whole())
    return np.array(rows, np.int64), hashes


def _are_paths(column: pa.ChunkedArray) -> bool:
    return is_string(column.type.value_type if is_list(column.type) else column.type)


def _values(column: pa.ChunkedArray) -> Iterator[tuple[int, Any]]:
    nested = is_list(column.type)
    for row, value in enumerate(column):
        if nested:
            yield from ((row, inner) for inner in (value.values if value.is_valid else ()))
        elif value.is_valid:
            yield row, value


@dataclass(frozen=True)
class _Content:
    """Content of a value in memory, or of a file."""

    data: Any
    path: Path | None

    @classmethod
    def of(cls, value: Any, root: Path) -> _Content | None:
        if not value.is_valid:
            return None
        if isinstance(value, pa.StructScalar):
            if not {"bytes", "path"} <= fields_of(value.type):
                return cls(b"".join(_packed(inner) for inner in value.values()), None)
            value = value["bytes"] if value["bytes"].is_valid else value["path"]
            if not value.is_valid:
                return None
        if is_binary(value.type):
            return cls(value.as_buffer(), None) if len(value.as_buffer()) else None
        return cls(str(value), root / str(value)) if str(value) else None

    def probe(self) -> bytes:
        if self.path is None:
            size = len(self.data)
            middle = bytes(self.data[size // 2 : size // 2 + PROBE])
            return size.to_bytes(8, "little") + bytes(self.data[:PROBE]) + middle
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                first = file.read(PROBE)
                file.seek(size // 2)
                return size.to_bytes(8, "little") + first + file.read(PROBE)
        except (OSError, ValueError):
            return str(self.data).encode(errors="surrogatepass")

    def whole(self) -> bytes:
        if self.path is None:
            return bytes(self.data)
        try:
            with open_regular(self.path) as file:
                return file.read()
        except (OSError, ValueError):
            return str(self.data).encode(errors="surrogatepass")


def _packed(value: pa.Scalar) -> bytes:
    """Return the bytes of a field, such as a contrast of a scan or the edges of a graph, with their length."""
    content = bytes(value.as_buffer()) if value.is_valid and is_binary(value.type) else repr(value.as_py()).encode()
    return len(content).to_bytes(8, "little") + content
