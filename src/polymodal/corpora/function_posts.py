"""Posts about the functions of Python's standard library, as threads of a question-and-answer site.

The question about a function is the summary of its docstring (text) and its doctest or signature (code), the answer the
rest of its docstring and its body, which may repeat what the question quotes. A function whose docstring has a rest is
asked about twice, which makes duplicates: one post has the summary and the other one the rest, one has the beginning
of the code and the other one the end, at random. Each first post also has three negative pairs, with second posts of
other functions of the split: the most similar by BM25 (`similar_text`), one of the same module (`similar_tags`), and
one of another package (`different`). They have the same parts as the duplicate, so that the form of both posts says
nothing; for the same reason a question that has the rest of the docstring has no answer in words. Splits are by module,
and functions with equal code are in one, so that no function is in two splits.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.bm25 import BM25
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.functions import VERSION, functions
from polymodal.modalities import Category, Modality, Text, Threads
from polymodal.modalities.text import stored_texts
from polymodal.modalities.thread import stored_thread

MIN_WORDS, MIN_LINES = 5, 4  # of the rest of a docstring and of the code, for a second post
DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n[ \t]*\S.*)*", re.MULTILINE)

about = About(
    name="function_posts",
    description=f"questions and answers about functions of Python {VERSION}'s standard library, with duplicates",
    license="PSF-2.0",
    source="composed from the corpus 'functions'",
    modalities=("threads", "text", "category"),
    composed="questions and answers are parts of docstrings and code",
    version=2,
)


def function_posts() -> Corpus:
    """Open the corpus, preparing it and `functions` once."""
    columns: dict[str, Modality] = {"thread": Threads(), "text": Text({"en": 1.0}), "package": Category()}
    return open_prepared(about, columns, _rows, further={"module": pa.string()})


def parts_of_function(code: str, docstring: str) -> tuple[str, str, str, str]:
    """Return the summary, the doctests or else the signature, the rest of the docstring without them, and the body."""
    doctests = "\n".join(match.group().strip() for match in DOCTEST.finditer(docstring))
    summary, _, rest = DOCTEST.sub("", docstring).strip().partition("\n\n")
    signature, body = split_signature(code)
    return summary.strip(), doctests or signature, rest.strip(), body


def split_signature(code: str) -> tuple[str, str]:
    """Return the lines of a function up to the colon that ends its signature, and the lines of its body."""
    lines, depth = code.splitlines(), 0
    for number, line in enumerate(lines):
        depth += sum(line.count(sign) for sign in "([{") - sum(line.count(sign) for sign in ")]}")
        if depth <= 0 and line.split("#")[0].rstrip().endswith(":"):
            return "\n".join(lines[: number + 1]), "\n".join(lines[number + 1 :])
    return code, ""


def two_posts(
    summary: str, rest: str, code: str, rng: np.random.Generator
) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Return text and code of two posts about a function; None where there is too little for two.

    Each post has one of both texts and one part of the code, at random and independently of each other. The code is cut
    between a quarter and three quarters of its lines, since duplicates of equal length would be known by it.
    """
    lines = without_blank_lines(code).splitlines()
    if len(rest.split()) < MIN_WORDS or len(lines) < MIN_LINES:
        return None
    cut = int(rng.integers(len(lines) // 4, 3 * len(lines) // 4 + 1))
    halves, texts = ["\n".join(lines[:cut]), "\n".join(lines[cut:])], [summary, rest]
    (first, second), (one, other) = (rng.permutation(2).tolist() for _ in range(2))
    return (texts[first], halves[one]), (texts[second], halves[other])


def without_blank_lines(code: str) -> str:
    """Return code without lines that are empty or only whitespace."""
    return "\n".join(line for line in code.splitlines() if line.strip())


def _rows(prepare: Preparation) -> Iterator[Row]:
    library = functions()
    rows = library.table.select(["key", "split", "package", "module"]).to_pylist()
    codes = library.raw_values(np.arange(len(library)), "code")
    docstrings = library.raw_values(np.arange(len(library)), "docstring")
    for row, code, docstring in zip(rows, codes, docstrings, strict=True):
        row["code"], row["parts"] = code[0]["text"], parts_of_function(code[0]["text"], docstring[0]["text"])
        summary, _, rest, _ = row["parts"]
        row["posts"] = two_posts(summary, rest, row["code"], np.random.default_rng(zlib.crc32(row["key"].encode())))
        if row["posts"] is not None:
            text, code = row["posts"][1]
            row["form"] = (text == summary, without_blank_lines(row["code"]).startswith(code))
    links: dict[str, list[tuple[str, int]]] = {}
    for split in library.splits:
        links |= labelled_links([row for row in rows if row["split"] == split and row["posts"] is not None])
    for row in prepare.track(rows, "Composing posts"):
        summary, usage, rest, body = row["parts"]
        posts = row["posts"] or ((summary, usage),)
        answer = rest if posts[0][0] == summary else None  # all answers in words are the rest of a docstring
        for number, (text, code) in enumerate(posts):
            parts = (text, code, None, None) if number else (text, code, answer, body)
            yield {
                "key": _second_key(row) if number else row["key"],
                "thread": stored_thread(parts, () if number else links.get(row["key"], ())),
                "text": stored_texts(text or code),
                **{name: row[name] for name in ("split", "package", "module")},
            }


def labelled_links(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, int]]]:
    """Return the pairs of the first post of each row with second posts: the duplicate, and a negative of each kind.

    rows: of one split. Their "form" says what the second post has; a negative's is that of the duplicate. Functions
    with equal code are no negatives of each other.
    """
    index = BM25([" ".join(row["posts"][1]) for row in rows])
    of_code, of_form = defaultdict[str, list[int]](list), defaultdict[Any, list[int]](list)
    for number, row in enumerate(rows):
        of_code[row["code"]].append(number)
        of_form[row["form"]].append(number)
    links = {}
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        negatives = [other for other in of_form[row["form"]] if other not in of_code[row["code"]]]
        excluded = sorted({*range(len(rows))} - {*negatives})
        similar = index.top(" ".join(row["posts"][0]), 1, excluded).tolist()
        further = [other for other in negatives if other not in similar]
        siblings = [other for other in further if rows[other]["module"] == row["module"]]
        others = [other for other in further if rows[other]["package"] != row["package"]]
        # In the order of `LABELS`: the duplicate, and a negative of each kind.
        chosen = (number, *(int(rng.choice(some)) if some else None for some in (similar, siblings, others)))
        links[row["key"]] = [
            (_second_key(rows[other]), label) for label, other in enumerate(chosen) if other is not None
        ]
    return links


def _second_key(row: dict[str, Any]) -> str:
    return f"{row['key']}#2"
