"""Documents: every word's box lies on its ink, sums are right, values are linked to their labels; PDFs are read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from polymodal.corpora import _pdf
from polymodal.corpora._data_sets import DataSet, read_table
from polymodal.corpora._forms_and_letters import forms, letter
from polymodal.corpora._invoices import Goods, invoice, money, receipt
from polymodal.corpora._layout import Page, Style
from polymodal.corpora._letterhead import LOCALES
from polymodal.modalities import Words
from polymodal.modalities.document import Word

GOODS = Goods(
    ["Old key", "Honey pot", "Avocado", "Fork and knife with plate", "Lab coat", "Pear", "Beans", "Ice", "Ring"] * 2,
    [PILImage.new("RGBA", (64, 64), "red")],
)
TABLE = "\n".join(
    ['"","age","sex","height","town","note"']
    + [f'"{n}",{20 + n},{"fm"[n % 2]},1.{n}5,T{n % 9},n{n}' for n in range(30)]
)
HTML = (
    "<p>Measurements of people in nine towns, taken by hand.</p>"
    + "<p>"
    + "Every town was visited twice. " * 9
    + "</p>"
)
SURVEY = DataSet("Own", "survey", "A survey of nine towns", TABLE, HTML)


def people(language: str) -> Any:
    from faker import Faker

    faker = Faker(LOCALES[language])
    faker.seed_instance(1)
    return faker


def words_of(page: Page, rng: np.random.Generator) -> tuple[np.ndarray, list[Word]]:
    stored = page.stored(rng)
    return np.asarray(PILImage.open(io.BytesIO(stored["image"])).convert("L")), Words().decode(stored["words"])


def composed() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    pages: dict[str, Any] = {
        f"{name} {language}": compose(people(language), GOODS, language, rng)
        for name, compose in (("invoice", invoice), ("receipt", receipt))
        for language in LOCALES
    }
    pages["form"] = next(forms(SURVEY, people("en"), rng))
    pages["letter"] = letter(SURVEY, people("en"), rng)
    return pages


PAGES = composed()


@pytest.mark.parametrize("kind", PAGES)
def test_each_box_holds_the_ink_of_its_word_and_values_point_to_labels(kind: str) -> None:
    page, asked = PAGES[kind]
    image, words = words_of(page, np.random.default_rng(0))
    height, width = image.shape
    fields = {word.segment: word.field for word in words}
    for word in words:
        left, top, right, bottom = word.box
        assert 0 <= left < right <= 1000
        assert 0 <= top < bottom <= 1000
        inside = image[top * height // 1000 : -(-bottom * height // 1000), left * width // 1000 : right * width // 1000]
        assert inside.min() < 140, word
        if word.link >= 0:
            assert fields[word.link] in ("label", "item")
    assert {word.link for word in words} - {-1}
    text = " ".join(word.text for word in words)
    for _, answer, kind_of_question in asked:
        assert kind_of_question == "count" or answer in text


@pytest.mark.parametrize("language", LOCALES)
def test_an_invoice_adds_up(language: str) -> None:
    page, asked = PAGES[f"invoice {language}"]
    _, words = words_of(page, np.random.default_rng(0))

    def cents(field: str) -> list[int]:
        plain = str.maketrans("", "", ".,")
        numbers = [word.text.translate(plain) for word in words if word.field == field]
        return [int(number) for number in numbers if number.isdecimal()]

    quantities = [int(word.text) for word in words if word.field == "quantity"]
    assert [q * p for q, p in zip(quantities, cents("price"), strict=True)] == cents("amount")
    assert cents("subtotal") == [sum(cents("amount"))]
    assert cents("total") == [cents("subtotal")[0] + cents("tax")[0]]
    assert str(len(quantities)) in [answer for _, answer, kind in asked if kind == "count"]
    assert money(123456789, language) == ("1,234,567.89" if language == "en" else "1.234.567,89")


def test_a_form_holds_its_record() -> None:
    table = read_table(TABLE)
    for page, _ in forms(SURVEY, people("en"), np.random.default_rng(5)):
        _, words = words_of(page, np.random.default_rng(0))
        record = int(next(word.text for word in words if word.field == "number" and word.text.isdecimal())) - 1
        labels = {word.segment: word.text.rstrip(":") for word in words if word.field == "label"}
        values = {labels[word.link]: word.text for word in words if word.field == "value"}
        assert len(values) >= 4
        for column, value in values.items():
            expected = table[column][record]
            assert value == (f"{expected:.6g}" if isinstance(expected, float) else expected)


def test_too_little_text_makes_no_letter_and_too_few_columns_no_form() -> None:
    poor = DataSet("Own", "poor", "Poor", '"","x"\n"1",2\n"2",3', "<p>Nothing.</p>")
    assert letter(poor, people("en"), np.random.default_rng(0)) is None
    assert not list(forms(poor, people("en"), np.random.default_rng(0)))


def test_a_word_that_is_too_long_for_its_line_stands_alone() -> None:
    page = Page(300, 300, Style("sans", 14, (255, 255, 255), (0, 0, 0)))
    written = page.write("a bb extraordinarily-long-word c", 10, 10, width=60)
    assert written.bottom == 10 + 3 * page.style.line
    assert [word for word, *_ in page.words] == ["a", "bb", "extraordinarily-long-word", "c"]


def test_words_of_a_pdf_have_boxes_kinds_and_blocks() -> None:
    import pdfplumber
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 11))
    figure.text(0.1, 0.97, "Running head", fontsize=10)
    figure.text(0.1, 0.85, "A heading", fontsize=18, weight="bold")
    figure.text(0.1, 0.80, "Some plain words of text in a line", fontsize=10)
    figure.text(0.1, 0.75, "apt-get update", fontsize=10, family="monospace")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf")
    with pdfplumber.open(buffer) as document:
        words = Words().decode(_pdf.read_words(document.pages[0]))
    by_field = {field: " ".join(word.text for word in words if word.field == field)
                for field in ("header", "heading", "other", "code")}  # fmt: skip
    assert by_field == {
        "header": "Running head",
        "heading": "A heading",
        "other": "Some plain words of text in a line",
        "code": "apt-get update",
    }
    assert len({word.segment for word in words}) == 4
    first = next(word for word in words if word.text == "Some")
    assert first.box[0] == pytest.approx(100, abs=2)
    assert first.box[3] == pytest.approx(203, abs=5)  # the baseline is at 200, descenders reach below
