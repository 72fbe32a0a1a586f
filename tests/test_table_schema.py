"""Numeric and categorical columns of users' data as table rows, and languages of captions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage

from polymodal.corpora import Corpus, from_path
from polymodal.corpora.schemas import convert, find
from polymodal.modalities import Table, Text
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def images_with(folder: Path, headings: str, lines: list[str]) -> Path:
    for number in range(len(lines)):
        (folder / f"{number}.png").write_bytes(encoded(PILImage.new("RGB", (8, 6), (number, 3, 7))))
    rows = [f"{number}.png,{line}" for number, line in enumerate(lines)]
    (folder / "cars.csv").write_text("\n".join([f"image,{headings}", *rows]))
    return folder / "cars.csv"


def table_of(corpus: Corpus) -> Table:
    table = corpus.columns[corpus.column_with(Table)]
    assert isinstance(table, Table)
    return table


def test_columns_beside_an_image_and_a_label_are_table_rows(tmp_path):
    lines = [f"{n % 2},{n},{1.5 * n},{['red', 'blue'][n % 2]},x{n},http://a/{n},{n * 7}" for n in range(20)]
    lines[3], lines[4] = "1,3,,?,x3,http://a/3,8", "0,4,n/a,red,x4,http://a/4,9"
    corpus = from_path(images_with(tmp_path, "label,count,Width,color,model_id,url,ownerID", lines))
    table = table_of(corpus)
    assert [*table.numeric] == ["Width"]  # `count` counts the rows
    assert dict(table.categorical) == {"color": ("blue", "red")}
    assert corpus.label == "label"
    assert not any(isinstance(kind, Text) for kind in corpus.columns.values())
    column = corpus.column_with(Table)
    assert corpus.value(5, column).numbers.tolist() == [7.5]
    assert math.isnan(corpus.value(3, column).numbers[0])
    assert math.isnan(corpus.value(4, column).numbers[0])
    assert [corpus.value(row, column).categories[0] for row in (2, 3, 5)] == [1, -1, 0]


def test_captions_are_no_categories(tmp_path):
    lines = [f"a car number {n},{n % 3}.5,{['front', 'side'][n % 2]}" for n in range(12)]
    corpus = from_path(images_with(tmp_path, "words,score,side", lines))
    assert corpus.value(3, corpus.column_with(Text))[0].text == "a car number 3"
    assert ([*table_of(corpus).numeric], [*table_of(corpus).categorical]) == (["score"], ["side"])


def test_a_single_column_of_repeated_captions_stays_a_caption(tmp_path):
    corpus = from_path(images_with(tmp_path, "animal", ["a cat on a mat", "a dog"] * 6))
    assert corpus.value(1, "animal")[0].text == "a dog"


def test_texts_alone_get_no_table(tmp_path):
    (tmp_path / "a.csv").write_text("text,score\n" + "".join(f"thing {n},{n % 3}\n" for n in range(12)))
    assert not from_path(tmp_path / "a.csv").has_modality(Table)


def test_values_of_a_later_part_that_are_unknown_are_missing():
    labels = ["a", "b"] * 6
    first = pa.table({"label": labels, "size": [str(n % 5) for n in range(12)], "color": ["red", "blue"] * 6})
    found = find(first, Path(), {})
    later = pa.table({"label": ["a", "b"], "size": ["+2.5e1", "big"], "color": ["red", "green"]})
    assert convert(later, found).column("table").to_pylist() == [
        {"size": 25.0, "color": "red"},
        {"size": None, "color": None},
    ]


@pytest.mark.parametrize("written", ["1", "-1.5", " 3 ", "+4", "1e3", ".5", "7."])
def test_numbers_are_parsed_as_python_parses_them(written):
    table = pa.table({"label": ["a", "b"] * 5, "x": [written, "0"] + ["2"] * 8})
    found = find(table, Path(), {})
    assert convert(table, found).column("table")[0].as_py()["x"] == float(written)


def test_a_column_of_languages_is_that_of_the_captions(tmp_path):
    lines = [f"text {n},{['de', 'pt-BR', ''][n % 3]}" for n in range(12)]
    corpus = from_path(images_with(tmp_path, "sentence,locale", lines))
    captions = [corpus.value(row, "sentence")[0] for row in range(3)]
    assert captions == [("text 0", "de"), ("text 1", "pt-BR"), ("text 2", "und")]


def test_languages_of_lists_of_captions():
    texts = [["one", "two"], None, [], ["three"]] * 3
    table = pa.table(
        {"image": [b"\x89PNG\r\n\x1a\n"] * 12, "captions": texts, "language": ["en", "de", "fr", None] * 3}
    )
    stored = convert(table, find(table, Path(), {})).column("captions").to_pylist()
    assert stored[:4] == [
        [{"text": "one", "language": "en"}, {"text": "two", "language": "en"}],
        None,
        [],
        [{"text": "three", "language": "und"}],
    ]
    part = table.slice(4, 4)
    assert convert(part, find(table, Path(), {})).column("captions").to_pylist() == stored[4:8]


def test_missing_numbers_of_typed_columns():
    table = pa.table({"label": ["a", "b"] * 5, "x": pa.array([1.5, None, np.nan] + [2.0] * 7)})
    values = convert(table, find(table, Path(), {})).column("table").to_pylist()
    assert values[0] == {"x": 1.5}
    assert values[1] == {"x": None}
