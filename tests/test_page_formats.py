"""Formats of documents: FUNSD, CORD, LayoutLM's columns, hOCR, PDF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from format_samples import HOCR, SAMPLES
from polymodal.corpora import from_path
from polymodal.errors import UserError
from polymodal.modalities.document import Word
from polymodal.modalities.image import encoded


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def sizes(corpus: Any) -> dict[str, int]:
    return {split: len(rows) for split, rows in corpus.splits.items()}


# FUNSD


def test_funsd_has_words_with_fields_segments_and_links(tmp_path):
    corpus = from_path(SAMPLES["funsd"](tmp_path))
    assert sizes(corpus) == {"train": 9, "test": 3}
    assert corpus.columns["words"].fields == ("other", "answer", "question")
    row = next(row for row in range(len(corpus)) if corpus.key(row).endswith("82094.png"))
    assert corpus.value(row, "words") == [
        Word("R&D", (100, 100, 300, 150), "question", 0, -1),
        Word(":", (320, 100, 400, 150), "question", 0, -1),
        Word("No.", (500, 100, 600, 150), "answer", 37, 0),
        Word("4", (620, 100, 900, 150), "answer", 37, 0),
    ]


def test_damaged_forms_and_forms_without_images_are_counted(tmp_path):
    SAMPLES["funsd"](tmp_path)
    folder = tmp_path / "training_data"
    (folder / "annotations" / "82090.json").write_text('{"form": [{"box": [1, 2')
    (folder / "annotations" / "82091.json").write_text(json.dumps({"form": [{"id": 0, "label": "x"}]}))
    (folder / "annotations" / "82092.json").write_text(json.dumps({"form": []}))
    (folder / "images" / "82093.png").unlink()
    (folder / "images" / "82094.png").write_bytes(b"no image")
    corpus = from_path(tmp_path)
    assert sizes(corpus) == {"train": 4, "test": 3}
    assert sorted((one.count, one.reason.partition(" in ")[0]) for one in corpus.skipped) == [
        (1, "has no words"),
        (1, "names an image that is not"),
        (3, "cannot be read"),
    ]
    for file in folder.parent.glob("*/images/*"):
        file.unlink()
    with pytest.raises(UserError, match=r"No page of .* has words and an image. 9: names an image that is not in"):
        from_path(tmp_path)


# CORD


def test_cord_finds_the_receipt_of_its_own_split(tmp_path):
    corpus = from_path(SAMPLES["cord"](tmp_path))
    assert sizes(corpus) == {"train": 8, "validation": 2, "test": 2}
    row = corpus.splits["test"][1]
    assert corpus.key(row) == "test/image/receipt_00001.png"
    assert corpus.value(row, "words") == [
        Word("test1", (100, 100, 500, 206), "menu.nm", 0),
        Word("test1", (100, 100, 500, 206), "total.total_price", 1),
    ]


def test_cord_of_the_hub(tmp_path):
    datasets = pytest.importorskip("datasets")
    SAMPLES["cord"](tmp_path / "files")
    files = sorted((tmp_path / "files").glob("*/json/*.json"))
    rows = [
        {
            "image": {"bytes": encoded(PILImage.new("RGB", (80, 160), (number, 3, 7))), "path": None},
            "ground_truth": text,
        }
        for number, text in enumerate(file.read_text() for file in files)
    ]
    features = datasets.Features({"image": datasets.Image(), "ground_truth": datasets.Value("string")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    corpus = from_path(tmp_path / "train-00000-of-00001.parquet")
    assert [word.field for word in corpus.value(0, "words")] == ["menu.nm", "total.total_price"]
    assert set(corpus.columns) == {"image", "words"}


# Words and boxes in columns


def layoutlm(folder: Path, boxes: list[list[float]], size: tuple[int, int], integers: bool = True) -> Any:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-HEADER", "I-HEADER", "B-ANSWER"]
    tags = datasets.ClassLabel(names=names) if integers else datasets.Value("string")
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "bboxes": datasets.List(datasets.List(datasets.Value("float64"))),
            "ner_tags": datasets.List(tags),
            "image": datasets.Image(),
        }
    )
    given = [number % 4 if integers else names[number % 4] for number in range(len(boxes))]
    rows = [
        {
            "id": str(number),
            "tokens": [f"w{number}-{place}" for place in range(len(boxes))],
            "bboxes": boxes,
            "ner_tags": given,
            "image": PILImage.new("RGB", size, (number, 3, 7)),
        }
        for number in range(12)
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data.parquet")
    return from_path(folder / "data.parquet")


@pytest.mark.parametrize("integers", [True, False])
def test_tags_of_layoutlm_are_fields(integers, tmp_path):
    corpus = layoutlm(tmp_path, [[100, 100, 200, 900]] * 4, (200, 300), integers)
    assert corpus.columns["words"].fields == ("other", "ANSWER", "HEADER")
    assert [word.field for word in corpus.value(0, "words")] == ["other", "HEADER", "HEADER", "ANSWER"]
    assert corpus.value(2, "words")[1].text == "w2-1"


@pytest.mark.parametrize(
    ("boxes", "size", "box", "said"),
    [
        ([[100, 200, 900, 400]], (762, 1000), (100, 200, 900, 400), "thousandths of the page, as some reach out"),
        ([[100, 200, 900, 400]], (1600, 2000), (100, 200, 900, 400), "thousandths of the page, as none exceeds 1000"),
        ([[100, 200, 700, 400]], (800, 1000), (125, 200, 875, 400), "pixels of the page, as all are within"),
        ([[100, 200, 1500, 400]], (1600, 2000), (62, 100, 938, 200), "pixels of the page, as some exceed 1000"),
        ([[0.1, 0.2, 0.9, 0.4]], (1600, 2000), (100, 200, 900, 400), "fractions of the page"),
    ],
)
def test_the_unit_of_boxes_is_seen_from_the_pages(boxes, size, box, said, tmp_path):
    corpus = layoutlm(tmp_path, boxes, size)
    assert corpus.value(0, "words")[0].box == box
    assert any(said in note for note in corpus.notes)


# hOCR


def test_hocr_words_have_lines_as_segments(tmp_path):
    corpus = from_path(SAMPLES["hocr"](tmp_path))
    assert len(corpus) == 12
    row = next(row for row in range(12) if corpus.key(row) == "scan3.png")
    assert corpus.value(row, "words") == [
        Word("R&D", (100, 100, 400, 150), segment=0),
        Word("scan3", (500, 100, 900, 150), segment=0),
        Word("Café", (100, 250, 400, 300), segment=1),
    ]


def test_hocr_opens_nothing_outside_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(PILImage.new("RGB", (100, 200))))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.html").write_text(HOCR.format(name="../../secret"))
    with pytest.raises(UserError, match=r"no image of it is in"):
        from_path(tmp_path / "in")


def test_hocr_without_pages_and_half_written_ones(tmp_path):
    SAMPLES["hocr"](tmp_path)
    (tmp_path / "scan0.hocr").write_text("<html><p>nothing")
    (tmp_path / "scan1.hocr").write_text(HOCR.format(name="scan1").partition("<strong>")[0])
    (tmp_path / "scan2.hocr").write_text(HOCR.format(name="scan2").partition("</em>")[0])
    corpus = from_path(tmp_path)
    assert len(corpus) == 10
    assert sorted((one.count, one.reason) for one in corpus.skipped) == [(1, "cannot be read"), (1, "has no words")]


# PDF


def test_pdf_pages_have_words_where_they_are_drawn(tmp_path):
    corpus = from_path(SAMPLES["pdf"](tmp_path))
    assert len(corpus) == 24
    groups = {split: {corpus.raw(row, "group") for row in rows} for split, rows in corpus.splits.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 12
    words = corpus.value(3, "words")
    assert [word.text for word in words] == ["Page", "1", "of", "report", "1", "Below", "it"]
    assert words[0].segment == words[1].segment != words[5].segment
    gray = corpus.value(3, "image").convert("L")
    assert max(gray.size) == 1200
    for word in words:  # ink is in the box of each word, and none is left of the first
        left, top, right, bottom = (
            edge * side / 1000 for edge, side in zip(word.box, (gray.width, gray.height) * 2, strict=True)
        )
        assert gray.crop((round(left), round(top), round(right) + 1, round(bottom) + 1)).getextrema()[0] < 100
    first = words[0].box
    assert gray.crop((0, 0, int(first[0] * gray.width / 1000) - 3, gray.height)).getextrema()[0] > 200


def test_pdf_pages_that_are_turned_are_read_as_they_are_shown(tmp_path):
    pypdfium2 = pytest.importorskip("pypdfium2")
    SAMPLES["pdf"](tmp_path / "plain")
    document = pypdfium2.PdfDocument(tmp_path / "plain" / "report0.pdf")
    document[0].set_rotation(90)
    document.save(tmp_path / "turned.pdf")
    document.close()
    upright = from_path(tmp_path / "plain" / "report0.pdf").value(0, "words")
    corpus = from_path(tmp_path / "turned.pdf")
    image = corpus.value(0, "image")
    assert image.width > image.height
    for word, turned in zip(upright, corpus.value(0, "words"), strict=True):
        left, top, right, bottom = word.box
        assert turned.text == word.text
        assert turned.box == pytest.approx((1000 - bottom, left, 1000 - top, right), abs=3)


ENCRYPTED = b"""%%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj
4 0 obj<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>endobj
trailer<</Root 1 0 R/Encrypt 4 0 R/ID[<61><61>]/Size 5>>
""" % (b"41" * 32, b"42" * 32)


def test_pdf_files_that_cannot_be_read_are_counted(tmp_path):
    SAMPLES["pdf"](tmp_path)
    (tmp_path / "encrypted.pdf").write_bytes(ENCRYPTED)
    (tmp_path / "half.pdf").write_bytes((tmp_path / "report0.pdf").read_bytes()[:500])
    (tmp_path / "other.pdf").write_bytes(b"no PDF")
    (tmp_path / "empty.pdf").write_bytes(b"")
    PILImage.new("RGB", (50, 80), "gray").save(tmp_path / "scan.pdf")
    corpus = from_path(tmp_path)
    assert len(corpus) == 24
    assert sorted((one.count, one.reason) for one in corpus.skipped) == [
        (1, "has no text"),
        (1, "is protected by a password"),
        (3, "is damaged, or no PDF"),
    ]
    with pytest.raises(UserError, match=r"encrypted.pdf is protected by a password"):
        from_path(tmp_path / "encrypted.pdf")
    with pytest.raises(UserError, match=r"scan.pdf, page 1 has no text\); scanned pages need OCR first"):
        from_path(tmp_path / "scan.pdf")


def test_pages_of_a_long_pdf_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.corpora.formats.pdf.MAX_PAGES", 1)
    corpus = from_path(SAMPLES["pdf"](tmp_path))
    assert [(one.count, one.reason) for one in corpus.skipped] == [(12, "is behind page 1")]
    assert len(corpus) == 12


def test_pages_of_a_few_pdf_files_are_split_one_by_one(tmp_path):
    SAMPLES["pdf"](tmp_path)
    corpus = from_path([tmp_path / f"report{report}.pdf" for report in range(3)])
    assert all(len(rows) for rows in corpus.splits.values())


def test_later_pages_of_an_image_file_are_not_read_with_its_first_page(tmp_path):
    """Tesseract writes one hOCR file for a TIFF file of several pages."""
    frames = [PILImage.new("RGB", (400, 300), (shade, 0, 0)) for shade in (9, 99)]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    page = HOCR.format(name="scan").replace("scan.png", "scan.tif")
    body = page[page.index("<div") : page.rindex("</div>") + len("</div>")]
    (tmp_path / "scan.hocr").write_text(page.replace(body, body + body), encoding="utf-8")
    corpus = from_path(tmp_path)
    assert len(corpus) == 1
    assert [(one.count, one.reason.partition(",")[0]) for one in corpus.skipped] == [
        (1, "is a later page of an image file")
    ]
