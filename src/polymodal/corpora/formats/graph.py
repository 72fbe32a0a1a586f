"""Graphs: triples (head, relation, tail) as of FB15k-237 and WN18RR, and lists of edges; a row is a node."""

from __future__ import annotations

import csv as csv_reader
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats import csv
from polymodal.corpora.formats._data_files import DataFiles, Match, splits_of, suffix_of
from polymodal.corpora.formats._delimited import head_lines, lines_of
from polymodal.corpora.rows import Rows
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES
from polymodal.errors import UserError
from polymodal.modalities import Graph
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "graphs: triples head, relation, tail, or lists of edges"
EDGES = (".edges", ".edgelist", ".el")
PLAIN = (".txt", ".tsv", ".txt.gz", ".tsv.gz", *EDGES)
HEADS, TAILS = ("head", "subject", "source", "src", "from"), ("tail", "object", "target", "dst", "to")
RELATIONS = ("relation", "predicate", "rel", "edge", "type", "label")
TEXTS = ("entity2text.txt", "entity2textlong.txt")  # of KG-BERT: entity, tab, text
TRIPLES = re.compile(r"(train|valid|val|dev|test|.*triples?.*|.*_?kg_?.*)$", re.IGNORECASE)  # names of files
MAX_EDGES = 100  # of a node; of more, the first are kept
MAX_WORDS = 12  # of a node's name
MAX_SKIPPED = 0.1  # of the lines, until the file is refused
BATCH = 1000  # nodes that are converted together

Fact = tuple[str, str, str]


def matches(data: DataFiles) -> Match:
    """Look for files of two ids, or of three fields between tabs, or with headings such as head, relation, tail."""
    return Match.CONTENT if next(_graphs(data), None) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read each node with its edges, in both directions. Splits of the files are splits of edges.

    A node is a row in each split that has edges of it, with these alone. Raises UserError where there is no edge.
    """
    files = list(_graphs(data))
    stated = splits_of(files, data.root)
    splits = [stated[file] if stated else "" for file in files]
    texts = [file for file in data.files if file.name.lower() in TEXTS]
    table, skipped = cached_table(f"graph 2 {splits}", [*files, *texts], lambda: _convert(files, splits, texts))
    if table.num_rows == 0:
        raise UserError(f"{files[0] if files else data.given[0]} has no edges.")
    split = np.array(table.column("split").to_pylist(), dtype=object) if stated else None
    table = table.drop_columns(["split"] if texts else ["split", "text"])
    notes = (f"A node has at most {MAX_EDGES} edges.",)
    return Rows(table, data.root, {"graph": Graph()}, split, keys="node", skipped=skipped, notes=notes)


def _graphs(data: DataFiles) -> Iterator[Path]:
    return (file for file in data.files if file not in data.crowded and _places(file))


def _places(file: Path) -> tuple[int, int | None, int] | None:
    """Return where head, relation and tail are in the lines of a file; None for a file that has no edges."""
    suffix = suffix_of(file)
    if file.name.lower() in TEXTS or suffix not in (*csv.SUFFIXES, *PLAIN) or "ImageSets" in file.parts:
        return None  # `ImageSets` of Pascal VOC has an image and 1 or -1 in a line
    lines = [line for line in head_lines(file, 500) if not line.startswith(("#", "%"))]
    if not lines:
        return None
    rows = [_fields(line, suffix) for line in lines]
    headings = [name.strip().strip('"').lower() for name in rows[0]]
    if (suffix in csv.SUFFIXES or suffix in PLAIN) and len({*headings}) == len(headings):
        head, tail, relation = (_place(headings, names) for names in (HEADS, TAILS, RELATIONS))
        if head is not None and tail is not None and all(_is_name(row, (head, tail)) for row in rows[1:]):
            connected = relation is not None or _is_connected(rows[1:], head, tail)
            return (head, relation, tail) if connected and not any(map(_is_media, rows[1:21])) else None
    if suffix not in PLAIN or len({len(row) for row in rows[:20]}) > 1:
        return None
    rows = [row for row in rows if len(row) == len(rows[0])]
    count, stem = len(rows[0]), file.name.removesuffix(suffix)
    if count == 3 and all("\t" in line for line in lines) and TRIPLES.match(stem):
        names = all(_is_name(row, (0, 2)) and not _is_number(row[1]) for row in rows)
        repeated = len(rows) < 10 or len({row[1] for row in rows}) < 0.8 * len(rows)
        return (0, 1, 2) if names and repeated and not any(_is_media(row) for row in rows[:20]) else None
    ids = all(row[0].isdigit() and row[1].isdigit() for row in rows) if count >= 2 else False
    weighted = count == 2 or (count == 3 and all(_is_number(row[2]) for row in rows))
    return (0, None, 1) if weighted and (ids or suffix in EDGES) else None


def _fields(line: str, suffix: str) -> list[str]:
    if suffix in (".csv", ".csv.gz"):
        return next(csv_reader.reader([line]), [])
    return line.split("\t") if "\t" in line else line.split()


def _place(headings: Sequence[str], names: Sequence[str]) -> int | None:
    return next((headings.index(name) for name in names if name in headings), None)


def _is_name(row: Sequence[str], places: tuple[int, int]) -> bool:
    return all(place < len(row) and 0 < len(row[place].split()) <= MAX_WORDS for place in places)


def _is_connected(rows: Sequence[Sequence[str]], head: int, tail: int) -> bool:
    """Return whether some node has two edges, unless there are few; pairs of sentences have none."""
    ends = [row[place] for row in rows for place in (head, tail)]
    return len(rows) < 10 or len({*ends}) < len(ends)


def _is_media(row: Sequence[str]) -> bool:
    return any(field.lower().endswith((*IMAGE_SUFFIXES, *AUDIO_SUFFIXES)) for field in row)


def _is_number(value: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.]+([eE][+-]?\d+)?", value.strip()))


def _convert(files: Sequence[Path], splits: Sequence[str], texts: Sequence[Path]) -> Conversion:
    skipped: list[Skipped] = []
    columns = {"node": pa.string(), "graph": Graph().arrow_type, "text": pa.string(), "split": pa.string()}
    return Conversion(pa.schema(columns), _batches(files, splits, texts, pa.schema(columns), skipped), skipped)


def _batches(
    files: Sequence[Path], splits: Sequence[str], texts: Sequence[Path], schema: pa.Schema, skipped: list[Skipped]
) -> Iterator[pa.RecordBatch]:
    names = dict(line.split("\t", 1) for file in texts for line in lines_of(file) if "\t" in line)
    for split in dict.fromkeys(splits):
        facts: defaultdict[str, list[Fact]] = defaultdict(list)
        for file in (file for file, stated in zip(files, splits, strict=True) if stated == split):
            for head, relation, tail in _facts(file, skipped):
                for end in dict.fromkeys((head, tail)):
                    if len(facts[end]) < MAX_EDGES:
                        facts[end].append((head, relation, tail))
        nodes = list(facts)
        for start in range(0, len(nodes), BATCH):
            rows = [
                {"node": node, "graph": _graph(node, facts[node], names), "text": names.get(node), "split": split}
                for node in nodes[start : start + BATCH]
            ]
            yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _facts(file: Path, skipped: list[Skipped]) -> Iterator[Fact]:
    """Yield the edges of a file. Raises UserError when more than a tenth of the lines have none."""
    places = _places(file)
    assert places is not None
    head, relation, tail = places
    suffix, total = suffix_of(file), 0
    bad: list[str] = []
    has_headings = _has_headings(file, head, suffix)
    for number, line in enumerate(lines_of(file), 1):
        if not line.strip() or line.startswith(("#", "%")):
            continue
        total += 1
        if total == 1 and has_headings:
            continue
        row = [field.strip().strip('"') for field in _fields(line, suffix)]
        if len(row) <= max(head, tail, relation or 0) or not (row[head] and row[tail]):
            bad.append(f"{file}, line {number}: '{line[:60]}'")
            continue
        yield row[head], row[relation] if relation is not None else "", row[tail]
    if len(bad) > MAX_SKIPPED * total:
        raise UserError(f"{len(bad):,} of {total:,} lines are no edges ({bad[0]}).")
    if bad:
        skipped.append(Skipped(len(bad), "is no edge", bad[0]))


def _has_headings(file: Path, head: int, suffix: str) -> bool:
    first = next(line for line in head_lines(file) if not line.startswith(("#", "%")))
    return _fields(first, suffix)[head].strip().strip('"').lower() in HEADS


def _graph(node: str, facts: Sequence[Fact], names: Mapping[str, str]) -> dict[str, list]:
    """Return the node first, its neighbors, and the edges between them."""
    ends = dict.fromkeys([node, *(end for head, _, tail in facts for end in (head, tail))])
    places = {end: place for place, end in enumerate(ends)}
    edges = [{"source": places[head], "target": places[tail], "relation": relation} for head, relation, tail in facts]
    return {"nodes": [names.get(end, end) for end in ends], "edges": edges}
