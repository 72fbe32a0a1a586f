"""Conditions of clients: the same rows as a plain evaluation in Python, and one sentence for everything else."""

from __future__ import annotations

import contextlib
import math
import operator
import re
import time

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from polymodal.errors import UserError
from polymodal.serving.filter_syntax import MAX_LITERALS, MAX_WILDCARDS
from polymodal.serving.filters import engine_filter

TYPES = {
    "key": pa.string(),
    "split": pa.string(),
    "name": pa.string(),
    "price": pa.float64(),
    "Price": pa.float64(),
    "weight": pa.float32(),
    "count": pa.int64(),
    "small": pa.uint8(),
    "sold": pa.bool_(),
    "in": pa.int32(),
    "2024": pa.string(),
}
NAMES = ["a", "ab", "a%b", "a_b", "A", "it's", "a\nb", "a\\b", "é", "", "a'b%c_d", None]
VALUES = {
    "string": ["a", "ab", "a%b", "it's", "é", "", "b", "z", "a\nb"],
    "float": [0.5, 1.0, 1, -2, 2.5, 1e300, 1e-7, -1.5e3, 0.1],
    "int": [0, 1, 2, 7, 200, 3],
    "bool": [True, False],
}


def kind_of(column: str) -> str:
    kind = TYPES[column]
    if pa.types.is_string(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    return "int" if pa.types.is_integer(kind) else "float"


def some_rows(count: int = 60) -> list[dict]:
    """Every fourth value is missing."""
    rng = np.random.default_rng(0)

    def some(values: list):
        return None if rng.random() < 0.25 else values[rng.integers(len(values))]

    return [
        {
            "key": f"k{n}",
            "split": some(["train", "test"]),
            "name": some(NAMES),
            "price": some([0.5, 1.0, -2.0, 2.5, 0.1]),
            "Price": some([0.5, 1.0, -2.0, 2.5]),
            "weight": some([0.5, 1.0, -2.0, 2.5, float(np.float32(0.1))]),
            "count": some([0, 1, 2, -7, 2**62]),
            "small": some([0, 1, 2, 200, 255]),
            "sold": some([True, False]),
            "in": some([0, 1, 2, 7]),
            "2024": some(NAMES),
        }
        for n in range(count)
    ]


ROWS = some_rows()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = pa.Table.from_pylist(ROWS, pa.schema(TYPES))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2 * len(ROWS), np.float32)), 2)
    place = lancedb.connect(str(tmp_path_factory.mktemp("filters")))
    return place.create_table("rows", rows.append_column("vector", vectors))


def keys_of(table, text: str) -> set[str]:
    search = table.search(np.ones(2, np.float32), vector_column_name="vector").limit(len(ROWS))
    return set(search.where(engine_filter(text, TYPES)).to_arrow()["key"].to_pylist())


# Trees of tuples, written as text and evaluated in Python: (what it is, column or parts, ...)

COLUMN = st.sampled_from(list(TYPES))
PATTERN = st.lists(st.sampled_from(["a", "b", "%", "_", "'", "\\%", "\\_", "\\\\", "é", "\n"]), max_size=5).map("".join)


def leaf(column: str) -> st.SearchStrategy:
    value, negated = st.sampled_from(VALUES[kind_of(column)]), st.booleans()
    signs = ["=", "!=", "<>"] if kind_of(column) == "bool" else ["=", "!=", "<>", "<", "<=", ">", ">="]
    kinds = [
        st.tuples(st.just("compare"), st.just(column), st.sampled_from(signs), value),
        st.tuples(st.just("in"), st.just(column), st.lists(value, min_size=1, max_size=3), negated),
        st.tuples(st.just("null"), st.just(column), negated),
    ]
    if kind_of(column) != "bool":
        kinds.append(st.tuples(st.just("between"), st.just(column), value, value, negated))
    if kind_of(column) == "string":
        kinds.append(st.tuples(st.just("like"), st.just(column), PATTERN, negated))
    return st.one_of(kinds)


TREE = st.recursive(
    COLUMN.flatmap(leaf),
    lambda part: st.one_of(
        st.tuples(st.just("not"), part),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(part, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)


def quoted(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def written(tree: tuple) -> str:
    kind, first, *rest = tree
    if kind == "not":
        return f"not ({written(first)})"
    if kind in ("and", "or"):
        return f" {kind} ".join(f"({written(part)})" for part in first)
    name = f'"{first}"' if first in ("in", "2024") else first
    if kind == "compare":
        return f"{name}{rest[0]}{quoted(rest[1])}"
    if kind == "null":
        return f"{name} IS {'NOT ' * rest[0]}NULL"
    not_ = "NOT " * rest[-1]
    if kind == "in":
        return f"{name} {not_}IN ({', '.join(map(quoted, rest[0]))})"
    if kind == "between":
        return f"{name} {not_}BETWEEN {quoted(rest[0])} AND {quoted(rest[1])}"
    return f"{name} {not_}LIKE {quoted(rest[0])}"


SIGNS = {"=": operator.eq, "!=": operator.ne, "<>": operator.ne, "<": operator.lt, "<=": operator.le}
SIGNS |= {">": operator.gt, ">=": operator.ge}


def matches(value: str, pattern: str) -> bool:
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    expression = "".join({"%": ".*", "_": "."}.get(part, re.escape(part[-1])) for part in parts)
    return re.fullmatch(expression, value, re.DOTALL) is not None


def truth(tree: tuple, row: dict) -> bool | None:
    """True, False, or None where a missing value leaves it open."""
    kind, first, *rest = tree
    if kind == "not":
        part = truth(first, row)
        return None if part is None else not part
    if kind in ("and", "or"):
        parts, decides = [truth(part, row) for part in first], kind == "or"
        return decides if decides in parts else None if None in parts else not decides
    value = row[first]
    if kind == "null":
        return (value is None) is not rest[0]
    if value is None:
        return None

    def typed(literal):
        return float(np.float32(literal)) if TYPES[first] == pa.float32() else literal

    if kind == "compare":
        return SIGNS[rest[0]](value, typed(rest[1]))
    if kind == "in":
        return (value in [typed(one) for one in rest[0]]) is not rest[1]
    if kind == "between":
        return (typed(rest[0]) <= value <= typed(rest[1])) is not rest[2]
    return matches(value, rest[0]) is not rest[1]


def levels(tree: tuple) -> int:
    kind, first, *_ = tree
    if kind == "not":
        return 2 + levels(first)
    return 1 + max(map(levels, first)) if kind in ("and", "or") else 0


@settings(max_examples=300, deadline=None)
@example(("not", ("and", [("in", "split", ["a"], False), ("in", "split", ["ab"], False)])))
@given(TREE.filter(lambda tree: levels(tree) <= 8 and len(written(tree)) <= 1000))
def test_a_condition_finds_the_rows_of_a_plain_evaluation(table, tree):
    text = written(tree)
    assume("weight" not in text or "1e+300" not in text)  # which is no number of float32
    assume(sum(text.count(wildcard) for wildcard in "%_") <= MAX_WILDCARDS)
    expected = {row["key"] for row in ROWS if truth(tree, row)}
    assert keys_of(table, text) == expected, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NOT price < 1 AND sold = TRUE", lambda row: row["price"] is not None and row["price"] >= 1 and row["sold"]),
        ("price < 1 OR price > 2 AND sold = false", lambda row: _or(row)),
        ("`price`>=1", lambda row: row["price"] is not None and row["price"] >= 1),
        ("Price > 1", lambda row: row["Price"] is not None and row["Price"] > 1),
        ("count > -9223372036854775807 ", lambda row: row["count"] is not None),
        ("NOT NOT NOT NOT NOT NOT NOT NOT sold = true", lambda row: row["sold"]),
        ("((((((((sold = true))))))))", lambda row: row["sold"]),
        ("price < 1e308", lambda row: row["price"] is not None),
        ("key in ('k1', 'k2')", lambda row: row["key"] in ("k1", "k2")),
    ],
)
def test_precedence_quotes_and_bounds(table, text, expected):
    assert keys_of(table, text) == {row["key"] for row in ROWS if expected(row)}


def _or(row: dict) -> bool:
    price = math.nan if row["price"] is None else row["price"]
    return price < 1 or (price > 2 and row["sold"] is False)


REFUSED = {
    "a function": ("repeat(key, 1000000) = ''", "names no column of the index at character 1, repeat"),
    "a function of a value": ("key = repeat('a', 100)", "at character 7, repeat"),
    "arithmetic": ("price + 1 < 2", "at character 7"),
    "a column on the right": ("price < Price", "at character 9, Price"),
    "a placeholder": ("$1 = 1", "at character 1"),
    "a comment": ("price < 1 -- more", "at character 11"),
    "two statements": ("price < 1; DROP TABLE rows", "at character 10"),
    "a subquery": ("key IN (SELECT 1)", "at character 9, SELECT"),
    "a cast": ("price::text = '1'", "at character 6"),
    "nothing": ("", "at its end: expected a column"),
    "no end": ("price < 1 AND", "at its end: expected a column"),
    "no value": ("price <", "at its end: expected a number"),
    "an open string": ("key = 'a", "at character 7, 'a"),
    "an open string with a quote": ("key = 'a''", "at character 7, 'a''"),
    "an open parenthesis": ("(price < 1", r"at its end: expected \)"),
    "one parenthesis too many": ("price < 1)", "at character 10"),
    "an empty list": ("price IN ()", "at character 11"),
    "equal to NULL": ("price = NULL", "at character 9"),
    "a number with letters": ("price < 12ab", "at character 9"),
    "a surrogate": ("key = '\ud800'", "at character 7"),
    "a surrogate alone": ("\ud800", "at character 1"),
    "NaN": ("price = NaN", "at character 9"),
    "the vector": ("vector IS NULL", "names no column of the index at character 1, vector; there are key, split"),
    "an unknown column": ("cost < 10", "names no column of the index at character 1, cost"),
    "another case": ("PRICE < 10", "names no column"),
    "a string for a number": ("price < 'a'", "The column price holds numbers"),
    "a number for a string": ("key < 1", "The column key holds strings"),
    "a number for a boolean": ("sold = 1", "The column sold is true or false"),
    "a boolean for a number": ("price = true", "The column price holds numbers"),
    "booleans have no order": ("sold < true", "only = and !="),
    "a fraction": ("count = 1.5", "whole numbers from"),
    "above the type": ("small = 256", "whole numbers from 0 to 255"),
    "below the type": ("count = -9223372036854775808", "whole numbers"),
    "above float32": ("weight < 1e300", "magnitude"),
    "above all": ("price < 1e400", "too large"),
    "LIKE of a number": ("price LIKE '1%'", "no string"),
    "LIKE without a pattern": ("key LIKE 1", "a 'pattern'"),
    "a loose backslash": (r"key LIKE 'a\b'", "backslash"),
    "a backslash at the end": ("key LIKE 'a\\'", "backslash"),
    "deep": ("(" * 9 + "price < 1" + ")" * 9, "at most 8 levels"),
    "many NOT": ("NOT " * 9 + "price < 1", "at most 8 levels"),
    "very deep": ("(" * 990, "at most 8 levels"),
    "long": ("price < 1" + " " * 1000, "at most 1,000 characters"),
    "a long string": ("key = '" + "a" * 301 + "'", "at most 300 characters"),
    "a long number": ("price < " + "1" * 301, "at most 300 characters"),
    "many values": ("count IN (" + ",".join(["1"] * (MAX_LITERALS + 1)) + ")", "at most 100 values"),
    "many wildcards": ("key LIKE '" + "_" * 10 + "' OR key LIKE '" + "%" * 7 + "'", "at most 16 signs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_outside_the_grammar_is_refused_in_a_sentence(name):
    text, said = REFUSED[name]
    columns = TYPES | {"vector": pa.list_(pa.float32(), 4), "thumbnail": pa.binary(), 'a"b`c': pa.string()}
    with pytest.raises(UserError, match=said) as error:
        engine_filter(text, columns)
    message = str(error.value)
    message.encode()
    assert message.endswith(".")
    assert "`c" not in message
    assert message.count(". ") == 0


FRAGMENTS = ["price", "key", "'a'", "1", "AND", "OR", "NOT", "(", ")", "IN", "LIKE", "IS", "NULL", "<", "=", ",", "\\"]
FRAGMENTS += ["BETWEEN", "-", "e5", "true", "`", '"', "repeat", "%", ";", "--", "$1", "?", ":x", "\x00"]


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(" ".join)))
def test_any_other_string_is_a_condition_or_a_sentence(table, text):
    with contextlib.suppress(UserError):
        search = table.search(np.ones(2, np.float32), vector_column_name="vector").limit(3)
        search.where(engine_filter(text, TYPES)).to_arrow()


def test_the_largest_conditions_are_quick(table):
    """Those at every bound: nested, long, with many patterns."""
    nested = "price < 1"
    for level in range(4):
        nested = f"NOT (key = 'a' {'AND' if level % 2 else 'OR'} {nested})"
    many = " OR ".join(["price=1"] * 85)
    patterns = " OR ".join(["name LIKE '%_a%_b'"] * 4)
    for text in (nested, many, patterns, "count IN (" + ",".join(map(str, range(100))) + ")"):
        begin = time.monotonic()
        keys_of(table, text)
        assert time.monotonic() - begin < 2, text
