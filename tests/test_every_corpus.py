"""Every built-in corpus, prepared from its real packages: `make test-corpora`."""

from __future__ import annotations

import numpy as np
import pytest

import polymodal as pm
from polymodal.corpora.contact_sheet import describe_row, plot_contact_sheet, some_rows

pytestmark = pytest.mark.corpora

# a column whose values, or English texts, must not be on two sides
APART = {
    "furniture": "captions",
    "furniture_views": "captions",
    "stamps": "captions",
    "functions": "module",
    "function_posts": "module",
    "molecules": "molecule",
}


@pytest.fixture(params=sorted(pm.corpora.built_in()))
def corpus(request) -> pm.corpora.Corpus:
    return pm.corpora.load_corpus(request.param)


def test_keys_are_unique_and_splits_disjoint(corpus):
    keys = [corpus.key(row) for row in range(len(corpus))]
    assert len(set(keys)) == len(keys)
    rows = np.concatenate(list(corpus.splits.values()))
    assert len(np.unique(rows)) == len(rows)
    assert {"train", "validation", "test"} <= set(corpus.splits)
    assert all(len(rows) for rows in corpus.splits.values())


def test_every_tenth_example_can_be_read(corpus):
    for row in range(0, len(corpus), max(1, len(corpus) // 300)):
        example = corpus[row]
        assert example
        for name, value in example.items():
            assert corpus.columns[name].describe(value)


def test_every_column_holds_something(corpus):
    for name in corpus.columns:
        assert corpus.has(name).any(), name


def test_the_sheet_is_drawn(corpus, tmp_path):
    rows = some_rows(corpus, 2)
    plot_contact_sheet(corpus, rows, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert set(describe_row(corpus, int(rows[0]))) == set(corpus.columns)


@pytest.mark.parametrize(("name", "column"), APART.items())
def test_what_belongs_together_is_on_one_side(name, column):
    corpus = pm.corpora.load_corpus(name)
    side: dict[str, set[str]] = {}
    for split, rows in corpus.splits.items():
        for row in rows:
            value = corpus.raw(int(row), column)
            if isinstance(value, list):
                value = next(text["text"].lower() for text in value if text["language"] == "en")
            side.setdefault(value, set()).add(split)
    assert all(len(splits) == 1 for splits in side.values())
