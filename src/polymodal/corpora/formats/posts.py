"""Questions and answers with labelled pairs: a table of posts and one of pairs, or the release of SODD.

A table of posts has the columns `question_text` and `question_code`, of which one is enough, and may have an `id`,
`answer_text` and `answer_code`; texts may be in HTML. A table of pairs beside it has `first` and `second`, which name
posts by their id, and a `label`: `duplicate`, `similar_text`, `similar_tags`, `different`, or 0 to 3. A table of SODD
has two posts in HTML and a label in each row. Duplicates, also of duplicates, are in one split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polymodal.corpora._splits import Groups
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import DataFiles, Match, splits_of, suffix_of
from polymodal.corpora.formats._items import column_of, headings_of, plain, read_rows
from polymodal.corpora.formats._tables import concatenated
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Modality, Text, Threads
from polymodal.modalities.thread import DUPLICATE, LABELS, PARTS, stored_thread

description = "questions and answers with text and code, and a table of labelled pairs; SODD"
PARQUET = (".parquet", ".gzip", ".parquet.gz")
POSTS = tuple(plain(part) for part in PARTS)
PAIR, SODD = ("first", "second", "label"), ("firstpost", "secondpost", "label")
NAMES = {name: label for label, name in enumerate(LABELS)} | {str(label): label for label in range(len(LABELS))}
ACCEPTED_ANSWER = "4"  # a label of SODD, which is no pair of questions
LINES = ("p", "br", "li", "div", "pre", "blockquote", "h1", "h2", "h3")  # tags at which a line of a post ends
# A post in HTML begins with a block and ends with a tag.
HTML = re.compile(r"\s*<(p|pre|div|ul|ol|blockquote|h[1-6])\b[^>]*>.*</\w+>\s*", re.DOTALL | re.IGNORECASE)
IDS = ("id", "key", "postid", "questionid")


def matches(data: DataFiles) -> Match:
    """Look for a table whose headings name the text or the code of questions, or two posts in HTML."""
    return Match.CONTENT if any(_is_posts(names) or _is_sodd(names) for names in _headings(data).values()) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read posts and pairs. Raises UserError for a missing column, an unknown label, and where there is no post."""
    headings = _headings(data)
    if sodd := [file for file, names in headings.items() if _is_sodd(names)]:
        return _read_sodd(data, sodd)
    files = [file for file, names in headings.items() if _is_posts(names)]
    if not files:
        raise UserError(f"{data.given[0]} has no table with the columns question_text and question_code.")
    pairs = [file for file, names in headings.items() if {*PAIR[:2]} & {*names} and file not in files]
    for file in pairs:
        if lacking := [name for name in PAIR if name not in headings[file]]:
            raise UserError(f"{file} has no column '{lacking[0]}'; a table of pairs has first, second and label.")
    tables, skipped = _tables(files)
    table, labelled = concatenated(tables), []
    if not table.num_rows:
        raise UserError(f"{files[0]} has no rows.")
    key = column_of(table, IDS)
    keys = [_id(value) for value in table.column(key).to_pylist()] if key else [str(n) for n in range(len(table))]
    if len({*keys}) < len(keys):
        raise UserError(f"{files[0]} has several posts with one id; give each post an id of its own.")
    for of_pairs, file in zip(*_with_files(pairs, skipped), strict=True):
        columns = [of_pairs.column(column_of(of_pairs, (name,)) or "").to_pylist() for name in PAIR]
        labelled += [(_id(a), _id(b), _label(label, file)) for a, b, label in zip(*columns, strict=True)]
    unknown = [pair for pair in labelled if {*pair[:2]} - {*keys}]
    if unknown:
        skipped.append(Skipped(len(unknown), "names a post that is not there", f"{unknown[0][0]}, {unknown[0][1]}"))
    known_keys = {*keys}
    labelled = [pair for pair in labelled if {*pair[:2]} <= known_keys]
    names = [column_of(table, (part,)) for part in POSTS]
    parts = zip(*(table.column(name).to_pylist() if name else [None] * len(keys) for name in names), strict=True)
    further = {name: table.column(name) for name in table.column_names if name not in (*names, key)}
    stated = splits_of(files, data.root)
    split = np.repeat([stated[file] for file in files], [one.num_rows for one in tables]) if stated else None
    posts = [(*_text_and_code(*part[:2]), *_text_and_code(*part[2:])) for part in parts]
    return _rows_of(data, keys, posts, labelled, skipped, further, split)


def _read_sodd(data: DataFiles, files: Sequence[Path]) -> Rows:
    """Read pairs of posts in HTML; equal posts of a split are one."""
    tables, skipped = _tables(files)
    stated = splits_of(files, data.root)
    numbers: dict[tuple[str, str], str] = {}
    labelled, left_out = [], 0
    for table, file in zip(tables, files, strict=True):
        columns = [table.column(column_of(table, (name,)) or "").to_pylist() for name in SODD]
        for first, second, label in zip(*columns, strict=True):
            if str(label) == ACCEPTED_ANSWER:
                left_out += 1
                continue
            split = stated[file] if stated else ""
            ids = [numbers.setdefault((split, str(post)), f"post-{len(numbers)}") for post in (first, second)]
            labelled.append((ids[0], ids[1], _label(label, file)))
    if left_out:
        skipped.append(Skipped(left_out, "is a pair of a question and its accepted answer", str(files[0])))
    posts = [(*text_and_code(html), None, None) for _, html in numbers]
    split_of = np.array([split for split, _ in numbers]) if stated else None
    return _rows_of(data, [*numbers.values()], posts, labelled, skipped, {}, split_of)


def _rows_of(
    data: DataFiles,
    keys: list[str],
    parts: list[tuple[Any, ...]],
    labelled: Iterable[tuple[str, str, int]],
    skipped: list[Skipped],
    further: dict[str, Any],
    split: np.ndarray | None,
) -> Rows:
    row_of, links, groups = {key: row for row, key in enumerate(keys)}, defaultdict(list), Groups(len(keys))
    for first, second, label in labelled:
        links[first].append((second, label))
        if label == DUPLICATE:
            groups.join([row_of[first], row_of[second]])
    threads = [stored_thread(part, links[key]) for key, part in zip(keys, parts, strict=True)]
    columns: dict[str, Any] = {
        "id": keys,
        # What listings and search show of a post; the code of a question without text.
        "text": [part[0] or part[1] for part in parts],
        "thread": pa.array(threads, Threads().arrow_type),
        "group": [keys[groups.root(row)] for row in range(len(keys))],
    }
    table = pa.table(columns | {name: value for name, value in further.items() if name not in columns})
    kinds: dict[str, Modality] = {"thread": Threads(), "text": Text()}
    count = sum(map(len, links.values()))
    notes = (f"{count:,} labelled pairs of {len(keys):,} posts; duplicates are in one split.",)
    return Rows(table, data.root, kinds, split=split, keys="id", skipped=tuple(skipped), notes=notes)


def text_and_code(html: str) -> tuple[str, str]:
    """Return the text of a post without markup, and its blocks of code (`<pre>`), one after the other."""
    parser = _PostParser()
    parser.feed(html)
    parser.close()
    text = "\n".join(line for line in map(str.strip, "".join(parser.text).splitlines()) if line)
    return text, "\n".join(block.strip("\n") for block in "".join(parser.code).split("\0") if block.strip())


class _PostParser(HTMLParser):
    """Collects what stands inside and outside of `<pre>`."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.code: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._depth += tag == "pre"
        self._end_line(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre" and self._depth:
            self._depth -= 1
            self.code.append("\0")
        self._end_line(tag)

    def _end_line(self, tag: str) -> None:
        if tag in LINES and not self._depth:
            self.text.append("\n")

    def handle_data(self, data: str) -> None:
        (self.code if self._depth else self.text).append(data)


def _headings(data: DataFiles) -> dict[Path, list[str]]:
    """Return the plain headings of the tables of a data set."""
    headings = {}
    for file in data.files:
        if file in data.crowded:
            continue
        if suffix_of(file) in PARQUET:
            try:
                headings[file] = [plain(name) for name in pq.read_schema(file).names]
            except (OSError, pa.ArrowException):
                continue
        else:
            headings[file] = [plain(name) for name in headings_of(file)]
    return headings


def _is_posts(names: Sequence[str]) -> bool:
    return bool({*POSTS[:2]} & {*names})


def _is_sodd(names: Sequence[str]) -> bool:
    return {*SODD} <= {*names}


def _tables(files: Sequence[Path]) -> tuple[list[pa.Table], list[Skipped]]:
    tables: list[pa.Table] = []
    skipped: list[Skipped] = []
    for file in files:
        table, left_out = (pq.read_table(file), ()) if suffix_of(file) in PARQUET else read_rows(file)
        tables.append(table)
        skipped += left_out
    return tables, skipped


def _with_files(files: Sequence[Path], skipped: list[Skipped]) -> tuple[list[pa.Table], Sequence[Path]]:
    tables, left_out = _tables(files)
    skipped += left_out
    return tables, files


def _label(value: Any, file: Path) -> int:
    label = NAMES.get(str(value).strip().lower().removesuffix(".0"))
    if label is None:
        raise UserError(f"{file} has the label '{value}'; labels are {', '.join(LABELS)}, or 0 to {len(LABELS) - 1}.")
    return label


def _id(value: Any) -> str:
    """Return an id as text; whole numbers that a table has as floats, such as 17.0, are written as integers."""
    text = str(value).strip()
    return text.removesuffix(".0") if re.fullmatch(r"\d+\.0", text) else text


def _text_and_code(text: Any, code: Any) -> tuple[str | None, str | None]:
    """Return text and code of a post; of a text in HTML, as dumps of sites have it, without markup.

    Its blocks of code are the code where there is none of its own.
    """
    text, code = (None if value is None else str(value) for value in (text, code))
    if text is None or not HTML.fullmatch(text):
        return text, code
    words, blocks = text_and_code(text)
    return words, code if code and code.strip() else blocks
