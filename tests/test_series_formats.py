"""Time series of .ts files, of the UCR archive, of lists and of numbered columns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from format_samples import COUNT, SAMPLES
from polymodal.corpora import from_path
from polymodal.errors import UserError
from polymodal.modalities import Series, Table


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_ts_has_channels_missing_values_classes_and_splits(tmp_path):
    corpus = from_path(SAMPLES["timeseries"](tmp_path))
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 8, "test": 4}
    row = int(corpus.rows("train")[3])
    expected = np.array([[1, 2, 3, 4], [0.5, np.nan, 7, -0.01]], np.float32)
    np.testing.assert_array_equal(corpus.value(row, "series"), expected)
    assert corpus.label == "label"
    assert corpus.columns["label"].names[corpus.value(row, "label")] == "down"


def test_series_of_a_regression_have_numbers(tmp_path):
    lines = ["@problemName x", "@targetLabel true", "@data", *(f"1,2,{n}:{n * 1.5}" for n in range(12))]
    (tmp_path / "x.ts").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    assert corpus.value(2, corpus.column_with(Table)).numbers.tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("@problemName x\n@timestamps true\n@classLabel true a\n@data\n(0,1),(1,2):a\n", "a time stamp for each value"),
        ("@problemName x\n@classLabel true a\n", "has no line @data"),
        ("@problemName x\n@classLabel true a\n@data\n1,2,x:a\n1,2:a\n", "1 of 2 series cannot be read"),
        ("@problemName x\n@classLabel true a\n@data\n", "has no rows"),
    ],
)
def test_bad_files_are_a_sentence(text, sentence, tmp_path):
    (tmp_path / "x.ts").write_text(text)
    with pytest.raises(UserError, match=sentence):
        from_path(tmp_path / "x.ts")


def test_ucr_archive(tmp_path):
    for split in ("TRAIN", "TEST"):
        lines = [f"{n % 3 + 1}\t{n}\t2.5\t-1e-3\tNaN" for n in range(12)]
        (tmp_path / f"Made_{split}.tsv").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": COUNT, "test": COUNT}
    first = int(corpus.rows("train")[1])
    np.testing.assert_allclose(corpus.value(first, "series"), [[1, 2.5, -0.001]])
    assert corpus.columns["label"].names == ("1", "2", "3")


def test_numbered_columns_are_a_series_and_others_a_table(tmp_path):
    headings = ",".join(["label", "age", *(f"t{n}" for n in range(20))])
    lines = []
    for n in range(12):
        lines.append(",".join([["up", "down"][n % 2], str(20 + n % 7), *(str(n + place) for place in range(20))]))
    (tmp_path / "x.csv").write_text("\n".join([headings, *lines]))
    corpus = from_path(tmp_path / "x.csv")
    np.testing.assert_array_equal(corpus.value(2, corpus.column_with(Series)), [np.arange(2, 22)])
    assert [*corpus.columns[corpus.column_with(Table)].numeric] == ["age"]


def test_lists_of_numbers_and_of_channels(tmp_path):
    records = [{"signal": [1.0, 2.0, float(n)], "label": "ab"[n % 2]} for n in range(12)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, records)))
    np.testing.assert_array_equal(from_path(tmp_path / "x.jsonl").value(3, "signal"), [[1, 2, 3]])
    records = [{"signal": [[1.0, 2.0], [3.0, n]], "label": "ab"[n % 2]} for n in range(12)]
    records[1]["signal"] = [[1.0], [2.0, 3.0]]
    (tmp_path / "y.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = from_path(tmp_path / "y.jsonl")
    np.testing.assert_array_equal(corpus.value(3, "signal"), [[1, 2], [3, 3]])
    assert corpus.has("signal").tolist() == [True, False] + [True] * 10


def test_spaces_around_a_class_are_none_of_it(tmp_path):
    header = "@problemName M\n@timeStamps false\n@classLabel true a b\n@data\n"
    (tmp_path / "M_TRAIN.ts").write_text(header + "".join(f"{n},2,3: {'ab'[n % 2]}\n" for n in range(8)))
    (tmp_path / "M_TEST.ts").write_text(header + "".join(f"{n},5,3:{'ab'[n % 2]}\n" for n in range(4)))
    assert from_path(tmp_path).columns["label"].names == ("a", "b")


def test_equal_series_are_in_one_split(tmp_path):
    # Each series is there five times, with another class.
    lines = ["@problemName x", "@classLabel true a b", "@data"]
    lines += [f"{n},{n + 1},{n * 2}:{'ab'[copy % 2]}" for copy in range(5) for n in range(30)]
    (tmp_path / "x.ts").write_text("\n".join(lines))
    corpus = from_path(tmp_path)
    split = {int(row): name for name, rows in corpus.splits.items() for row in rows}
    assert len({*split.values()}) == 3
    assert all(len({split[n + 30 * copy] for copy in range(5)}) == 1 for n in range(30))
