"""Catalogues of recommenders: a table of items with title, texts and categories, beside the interactions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from json import loads as parse_json
from pathlib import Path

import pyarrow as pa

from polymodal.corpora._types import is_list, is_string
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats import csv, json
from polymodal.corpora.formats._data_files import suffix_of
from polymodal.corpora.formats._delimited import head_lines, lines_of, read_delimited
from polymodal.modalities.history import Item

ITEM = (
    "item", "itemid", "movieid", "productid", "parentasin", "asin", "iid", "bookid", "trackid", "songid", "articleid",
    "newsid", "businessid", "gameid", "recipeid", "videoid",
)  # fmt: skip
TITLES = ("title", "name", "itemtitle", "movietitle", "itemname", "productname")
TEXTS = ("description", "text", "overview", "plot", "abstract", "summary", "caption", "captions", "features")
LABELS = ("genres", "genre", "categories", "category", "class", "tags", "maincategory")
FACTS = ("director", "directors", "actors", "author", "authors", "brand", "store", "publisher", "artist", "facts")
MOVIELENS_1M = ("MovieID", "Title", "Genres")
# u.item of MovieLens 100k: what it has before a field for each genre.
MOVIELENS_100K = ("movie id", "title", "release date", "video release date", "url")


def plain(heading: str) -> str:
    """Return a heading without case, signs and the type that RecBole appends: `item_id:token` -> `itemid`."""
    return re.sub(r"[^a-z0-9]", "", heading.partition(":")[0].lower())


def headings_of(file: Path) -> list[str]:
    """Return the names of the columns of a CSV, TSV, JSON lines or RecBole file; none for another one."""
    suffix = suffix_of(file)
    if suffix not in (*json.LINES, *csv.SUFFIXES, ".inter", ".item"):  # a folder may have a million of other files
        return []
    lines = head_lines(file, 2)
    if not lines:
        return []
    if suffix in json.LINES:
        return _keys(lines[0])
    if suffix in csv.SUFFIXES:
        delimiter = max(csv.DELIMITERS, key=lines[0].count)
        return [name.strip().strip('"') for name in lines[0].split(delimiter)]
    return lines[0].split("\t") if suffix in (".inter", ".item") else []


def _keys(line: str) -> list[str]:
    """Return the keys of a JSON object; of a line that is too long to be whole, all that look like keys."""
    try:
        record = parse_json(line)
    except (ValueError, RecursionError):
        return re.findall(r'"([A-Za-z_]+)"\s*:', line)
    return list(record) if isinstance(record, dict) else []


def read_rows(file: Path) -> tuple[pa.Table, tuple[Skipped, ...]]:
    """Read a file that has headings. Raises UserError for one of another form."""
    suffix = suffix_of(file)
    if suffix in json.LINES:
        return json.read_json(file)
    return csv.read_csv(file) if suffix in csv.SUFFIXES else read_delimited(file, "\t")


def column_of(table: pa.Table, names: Sequence[str]) -> str | None:
    """Return the first column with one of these plain names, in the order of the names."""
    by_name = {plain(name): name for name in reversed(table.column_names)}
    return next((by_name[name] for name in names if name in by_name), None)


def is_items(file: Path) -> bool:
    """Return whether a file describes items: it has their ids and titles or texts."""
    names = {plain(name) for name in headings_of(file)}
    return bool(names & {*ITEM, "id"} and names & {*TITLES, *TEXTS}) and "user" not in names and "userid" not in names


def items_of(files: Sequence[Path], interactions: Sequence[Path]) -> dict[str, Item]:
    """Return the items that the files beside the interactions describe, by their ids; nothing where there are none."""
    items: dict[str, Item] = {}
    for file in files:
        if file in interactions:
            continue
        if file.name == "u.item":
            items |= _movielens_100k(file)
        elif file.name == "movies.dat":
            table, _ = read_delimited(file, "::", MOVIELENS_1M)
            items |= _of_table(table)
        elif is_items(file):
            items |= _of_table(read_rows(file)[0])
    return items


def _of_table(table: pa.Table) -> Mapping[str, Item]:
    key = column_of(table, (*ITEM, "id"))
    if key is None:
        return {}
    parts = {}
    for kind, names in {"title": TITLES, "text": TEXTS, "labels": LABELS, "facts": FACTS}.items():
        columns = [name for name in table.column_names if plain(name) in names]
        parts[kind] = list(_joined(table, columns[:1] if kind == "title" else columns))
    if any(name.endswith(":token_seq") and plain(name) in LABELS for name in table.column_names):
        parts["labels"] = [[word for value in values for word in _of_sequence(value)] for values in parts["labels"]]
    rows = zip(table.column(key).to_pylist(), *parts.values(), strict=True)
    return {str(name).strip(): _item(str(name), *values) for name, *values in rows if name is not None}


def _of_sequence(value: str) -> list[str]:
    """Split a sequence of RecBole, which has spaces between its parts unless these have other separators."""
    return [value] if re.search(r"[|,;']", value) else value.split()


def _joined(table: pa.Table, columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield for each row the texts of several columns; lists count as their elements."""
    usable = [name for name in columns if _has_texts(table.schema.field(name).type)]
    values = [table.column(name).to_pylist() for name in usable]
    for row in range(table.num_rows):
        texts: list[str] = []
        for column in values:
            value = column[row]
            texts += [str(one) for one in value if one] if isinstance(value, list) else [str(value)] if value else []
        yield texts


def _has_texts(kind: pa.DataType) -> bool:
    return is_string(kind) or (is_list(kind) and is_string(kind.value_type))


def _item(key: str, title: list[str], text: list[str], labels: list[str], facts: list[str]) -> Item:
    separate = [part.strip() for value in labels for part in re.split(r"[|,;]", value) if part.strip()]
    separate = [label for label in separate if label not in ("unknown", "(no genres listed)")]
    entities = [part.strip() for value in facts for part in re.split(r"[|;]", value) if part.strip()]
    name = title[0] if title else key
    words = [re.sub(r"\(\d{4}\)", "", " ".join(title)).strip(), *text, *separate]
    return Item(name, " ".join(word for word in words if word), tuple(entities), tuple(dict.fromkeys(separate)))


def _movielens_100k(file: Path) -> dict[str, Item]:
    """Read `u.item`, whose last fields say for each genre of `u.genre` whether it is one of the film."""
    beside = file.with_name("u.genre")
    genres = [line.partition("|")[0] for line in lines_of(beside) if line.strip()] if beside.is_file() else []
    items = {}
    for line in lines_of(file):
        key, *fields = line.split("|")
        if len(fields) >= len(MOVIELENS_100K) - 1:
            flags = fields[len(MOVIELENS_100K) - 1 :]
            labels = [genre for genre, flag in zip(genres, flags, strict=False) if flag == "1"]
            items[key] = _item(key, [fields[0]], [], labels, [])
    return items
