"""Which columns of a table are classes, and which are captions that repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image as PILImage

from polymodal.corpora import Corpus, from_path
from polymodal.corpora.data_report import report_on
from polymodal.modalities import Category, Table, Text
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def table(folder: Path, headings: str, values: list[str], mark: str = ",") -> Path:
    for number in range(len(values)):
        (folder / f"{number}.png").write_bytes(encoded(PILImage.new("RGB", (8, 6), (number, 3, 7))))
    lines = [f"{number}.png{mark}{value}" for number, value in enumerate(values)]
    (folder / "rows.csv").write_text("\n".join([f"image{mark}{headings}", *lines]))
    return folder / "rows.csv"


def kinds(corpus: Corpus) -> dict[str, type]:
    return {name: type(kind) for name, kind in corpus.columns.items() if name != "image"}


DOGS = ["boston_bull", "pug", "beagle"] * 8


def test_breeds_by_id_are_classes_and_the_report_says_how_they_become_captions(tmp_path):
    (tmp_path / "train").mkdir()
    for number in range(24):
        image = encoded(PILImage.new("RGB", (8, 6), (number, 3, 7)))
        (tmp_path / "train" / f"{number:x}aa.jpg").write_bytes(image)
    rows = [f"{number:x}aa,{breed}" for number, breed in enumerate(DOGS)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,breed", *rows]))
    corpus = from_path(tmp_path)
    assert corpus.label == "breed"
    assert corpus.columns["breed"].names == ("beagle", "boston_bull", "pug")
    assert corpus.prompts["boston_bull"] == ("boston bull",)
    assert "'breed' is read as the class (3 classes); --text-column breed trains on its values as captions." in (
        report_on(corpus).notes
    )
    captions = from_path(tmp_path, text="breed")
    assert captions.label is None
    assert captions.value(0, "breed")[0].text == "boston_bull"


@pytest.mark.parametrize("heading", ["breed", "Species", "dx", "diagnosis", "sorte", "name"])
def test_few_short_values_are_classes(heading, tmp_path):
    assert kinds(from_path(table(tmp_path, heading, DOGS))) == {heading: Category}


def test_names_of_several_words_are_classes(tmp_path):
    birds = ["Black footed Albatross", "Anna's Hummingbird", "Herring Gull"] * 8
    assert kinds(from_path(table(tmp_path, "bird", birds))) == {"bird": Category}


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("caption", DOGS),
        ("alt text", DOGS),
        ("beschreibung", ["ein Hund", "ein Ball"] * 12),
        ("what", ["a red square", "a blue circle"] * 12),
        ("what", ["red square on the left side", "blue circle"] * 12),
        ("what", ["sunset. palm tree", "old boats"] * 12),
        ("what", [f"thing_{number // 2}" for number in range(23)]),  # hardly any repeats
        ("diagnosis", ["no sign of any disease in the left lung as before", "pneumonia is likely on the right"] * 12),
    ],
)
def test_captions_that_repeat_stay_captions(heading, values, tmp_path):
    corpus = from_path(table(tmp_path, heading, values))
    assert kinds(corpus) == {heading: Text}
    assert corpus.label is None


def test_beside_captions_a_column_of_few_values_stays_a_cell(tmp_path):
    values = [f"a photo of number {number},{breed}" for number, breed in enumerate(DOGS)]
    assert kinds(from_path(table(tmp_path, "caption,coat", values))) == {"caption": Text, "table": Table}


def test_of_two_columns_the_one_with_a_usual_heading_is_the_class(tmp_path):
    values = [f"{breed},{('red', 'black')[number // 12]}" for number, breed in enumerate(DOGS)]
    assert kinds(from_path(table(tmp_path, "breed,coat", values))) == {"breed": Category, "table": Table}


def test_a_column_of_0_and_1_for_each_class(tmp_path):
    names = ("NV", "MEL", "BCC")
    values = [",".join(f"{float(number % 3 == place)}" for place in range(3)) for number in range(24)]
    corpus = from_path(table(tmp_path, ", ".join(names), values))
    assert kinds(corpus) == {"label": Category}
    assert [corpus.raw(row, "label") for row in range(4)] == ["NV", "MEL", "BCC", "NV"]
    assert any("single 1 in the columns NV, MEL, BCC" in note for note in corpus.notes)
    (tmp_path / "several").mkdir()
    values[5] = "1,1,0"
    assert kinds(from_path(table(tmp_path / "several", "NV,MEL,BCC", values))) == {"table": Table}


def test_a_test_table_without_the_columns_of_classes_is_not_read(tmp_path):
    names = ("healthy", "rust", "scab")
    values = [",".join(f"{int(number % 3 == place)}" for place in range(3)) for number in range(24)]
    table(tmp_path, ",".join(names), values)
    (tmp_path / "rows.csv").rename(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_text("image\n" + "".join(f"{number}.png\n" for number in range(12)))
    corpus = from_path(tmp_path)
    assert (len(corpus), kinds(corpus)) == (24, {"label": Category})
    assert any("test.csv is not read: it has no 'healthy'" in note for note in corpus.notes)


def test_blanks_around_class_names_do_not_make_classes(tmp_path):
    corpus = from_path(table(tmp_path, "breed", ["pug", "pug ", "husky", " husky"] * 6))
    assert corpus.columns["breed"].names == ("husky", "pug")
    assert [corpus.value(row, "breed") for row in range(4)] == [1, 1, 0, 0]
