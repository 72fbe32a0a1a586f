"""The processor that is made of declared columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.points import PointsColumn
from polymodal.data.columns.text import LearnedTokenizer, TextColumn
from polymodal.data.processor import Declared, Optional, Processor, SharedColumn, Sparse
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Category, Points, Text
from polymodal.modalities.modality import Modality, to_npy

COLUMNS: Declared = {
    "text": TextColumn(LearnedTokenizer(60, 12)),
    "points": Optional(Sparse(PointsColumn(8))),
    "label": Optional(LabelColumn()),
    "question": SharedColumn("text"),
}


def corpus(**changes: Modality) -> Corpus:
    columns: dict[str, Modality] = {"captions": Text(), "points": Points(), "kind": Category(("cup", "bus"))} | changes
    cloud = to_npy(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
    rows = [
        {
            "captions": [{"text": f"a {('cup', 'bus')[n % 2]}", "language": "en"}] if n < 5 else None,
            "points": cloud if n % 2 else None,
            "kind": ("cup", "bus")[n % 2],
        }
        for n in range(6)
    ]
    splits = {"train": np.arange(6)}
    return Corpus(
        About("things", "things", "none", "here", ("text",)), pa.Table.from_pylist(rows), columns, splits, label="kind"
    )


def test_a_sparse_column_is_read_where_a_row_has_it_and_a_required_one_always() -> None:
    processor = Processor.fit([corpus()], COLUMNS)
    assert [set(processor.load_example(corpus(), row)) for row in (0, 1)] == [
        {"text", "label"},
        {"text", "points", "label"},
    ]
    with pytest.raises(UnreadableExample, match="captions"):
        processor.load_example(corpus(), 5)


def test_an_optional_column_is_left_out_and_a_required_one_refused(tmp_path: Path) -> None:
    whole = corpus()
    bare = Corpus(whole.about, whole.table, {"captions": Text()}, whole.splits)
    processor = Processor.fit([bare], COLUMNS)
    processor.save(tmp_path)
    for one in (processor, Processor.load(tmp_path, COLUMNS)):
        assert set(one.columns) == {"text"}
        assert (one.points, one.label) == (None, None)
        with pytest.raises(AttributeError):
            _ = one.image
    with pytest.raises(UserError, match="no text column"):
        Processor.fit([Corpus(whole.about, whole.table, {"points": Points()}, whole.splits)], COLUMNS)


def test_a_shared_column_collates_under_a_second_name_and_unknown_names_are_refused() -> None:
    processor = Processor.fit([corpus()], COLUMNS)
    batch = processor(text=["a cup"], question=["a cup"])
    assert batch["text"].ids.tolist() == batch["question"].ids.tolist()
    assert processor.tokenizer is processor.text.tokenizer
    with pytest.raises(UserError, match="does not take sound; it takes text, points, label, question"):
        processor(sound=[b""])


def test_a_saved_processor_makes_the_same_batches(tmp_path: Path) -> None:
    processor = Processor.fit([corpus()], COLUMNS)
    processor.save(tmp_path)
    again = Processor.load(tmp_path, COLUMNS)
    assert again.label.names == ["cup", "bus"]
    assert again(text=["a bus"])["text"].ids.tolist() == processor(text=["a bus"])["text"].ids.tolist()
