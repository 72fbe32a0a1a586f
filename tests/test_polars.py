"""Frames of polars, eager and lazy. What needs the library itself is skipped where it is not installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage

from polymodal.corpora import from_table
from polymodal.errors import UserError
from polymodal.modalities import Category
from polymodal.modalities.image import encoded

ROWS = {
    "image": [encoded(PILImage.new("RGB", (8, 6), (number, 3, 7))) for number in range(12)],
    "caption": [f"about thing {number}" for number in range(12)],
    "label": ["cat", "dog"] * 6,
}


class LazyFrame:
    """As polars has it: without an Arrow interface until it is collected."""

    def __init__(self, result: Any):
        self.result = result

    def collect(self) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class DataFrame:
    def __init__(self, table: pa.Table):
        self.table, self.columns, self.dtypes = table, table.column_names, table.schema.types

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.table.__arrow_c_stream__(requested_schema)


LazyFrame.__module__, DataFrame.__module__ = "polars.lazyframe.frame", "polars.dataframe.frame"


def shown(data: Any) -> list[int]:
    corpus = from_table(data)
    return [corpus.value(row, "image").getpixel((0, 0))[0] for row in range(len(corpus))]


def test_lazy_frames_are_collected():
    frame = DataFrame(pa.table(ROWS))
    assert shown(LazyFrame(frame)) == list(range(12))
    halves = {
        split: LazyFrame(DataFrame(pa.table(ROWS)[place : place + 6])) for split, place in (("train", 0), ("test", 6))
    }
    assert {name: len(rows) for name, rows in from_table(halves).splits.items()} == {"train": 6, "test": 6}
    with pytest.raises(UserError, match="The LazyFrame cannot be collected: no such file"):
        from_table(LazyFrame(OSError("no such file")))


def test_frames_of_the_library_itself():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(ROWS)
    assert shown(frame) == shown(frame.lazy()) == list(range(12))
    for kind in (pl.Categorical, pl.Enum(["cat", "dog"])):
        column = from_table(frame.with_columns(pl.col("label").cast(kind))).columns["label"]
        assert isinstance(column, Category)
        assert column.names == ("cat", "dog")
    objects = [PILImage.new("RGB", (8, 6), (number, 3, 7)) for number in range(12)]
    assert shown(frame.with_columns(image=pl.Series(objects, dtype=pl.Object))) == list(range(12))
    pixels = np.stack([np.full((6, 8, 3), number, np.uint8) for number in range(12)])
    assert shown(frame.with_columns(image=pl.Series(pixels))) == list(range(12))
