"""Invoices and receipts of goods, laid out with random sums that are right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._layout import Page, Style
from polymodal.corpora._letterhead import DATES, LOCALES, Asked, address_lines, random_day
from polymodal.corpora.corpus import Corpus
from polymodal.modalities.image import to_rgb

CURRENCIES = {"en": "GBP", "de": "EUR", "fr": "EUR", "es": "EUR"}
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


class Goods(NamedTuple):
    """Goods for sale: names in a language, of emoji of one split; their images are the seller's logos."""

    names: list[str]
    images: list[PILImage.Image]


def goods_of(corpus: Corpus) -> dict[tuple[str, str], Goods]:
    """Return the emoji of food and of objects by split and language."""
    goods: dict[tuple[str, str], Goods] = {}
    for split in ("train", "validation", "test"):
        rows = [row for row in corpus.splits[split] if corpus.raw(row, "category") in ("Food & Drink", "Objects")]
        images = [corpus.value(row, "image") for row in rows]
        for language in LOCALES:
            texts = [next(caption["text"] for caption in corpus.raw(row, "captions") if caption["language"] == language)
                     for row in rows]  # fmt: skip
            goods[split, language] = Goods([text[0].upper() + text[1:] for text in texts], images)
    return goods


def money(cents: int, language: str) -> str:
    """Format cents: 12345 -> 123.45, or 123,45 by locale; thousands are grouped."""
    text = f"{cents / 100:,.2f}"
    return text if language == "en" else text.translate({ord(","): ".", ord("."): ","})


def _words(language: str) -> dict[str, str]:
    return {name: texts[list(LOCALES).index(language)] for name, texts in SAID.items()}


def _basket(goods: Goods, rng: np.random.Generator, max_count: int) -> list[tuple[str, int, int]]:
    """Sample name, quantity and price in cents of different goods."""
    chosen = rng.choice(len(goods.names), int(rng.integers(2, max_count + 1)), replace=False)
    return [(goods.names[number], int(rng.integers(1, 10)), int(rng.integers(49, 9999))) for number in chosen]


def _sign(page: Page, goods: Goods, x: int, y: int, side: int, rng: np.random.Generator) -> None:
    sign = goods.images[int(rng.integers(len(goods.images)))].convert("RGBA").resize((side, side))
    page.image.paste(to_rgb(sign), (x, y), sign.getchannel("A"))


def invoice(people: Any, goods: Goods, language: str, rng: np.random.Generator) -> tuple[Page, Asked]:
    """Lay out an A4 invoice: seller, buyer, number and date, a table of goods, sums."""
    style, terms = Style.sample(rng), _words(language)
    page = Page(794, 1123, style)
    left, right, y = 70, 724, 60
    seller, buyer = people.company(), people.name()
    day = random_day(rng)
    number, issued = f"{day.year}-{rng.integers(1000, 99999)}", day.strftime(DATES[language])
    if rng.random() < 0.6:
        _sign(page, goods, right - 64, y, 64, rng)
    y = page.write(seller, left, y, field="seller", bold=True, scale=1.5, ink=style.accent, width=560).bottom
    for line in address_lines(people):
        y = page.write(line, left, y).bottom
    y = page.write(terms["invoice"], left, y + 2 * style.line, field="header", bold=True, scale=1.9).bottom + style.line
    facts = [("number", number), ("date", issued)]
    below = page.write(terms["buyer"], left, y, field="label", bold=True)
    bottom = page.write(buyer, left, below.bottom, field="buyer", link=below.segment).bottom
    for line in address_lines(people):
        bottom = page.write(line, left, bottom).bottom
    for name, value in facts:
        label = page.write(f"{terms[name]}:", 430, y, field="label", bold=True)
        y = page.write(value, right, y, field=name, link=label.segment, right=True).bottom
    y = max(y, bottom) + 2 * style.line
    basket = _basket(goods, rng, 12)
    across = [("item", left, False), ("quantity", 440, True), ("price", 590, True), ("amount", right, True)]
    if rng.random() < 0.5:
        page.drawing.rectangle((left - 8, y - 6, right + 8, y + style.line), fill=_pale(style.accent))
    heads = {
        name: page.write(terms[name], x, y, field="label", bold=True, right=to_right) for name, x, to_right in across
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
    y = _sums(page, [("subtotal", terms["subtotal"], subtotal), ("tax", f"{terms['tax']} {TAX[language]} %", tax),
                     ("total", terms["total"], subtotal + tax)], (430, right), y + style.line, language)  # fmt: skip
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
        amount = _amount(cents, language) if last else money(cents, language)
        y = page.write(amount, between[1], y, field=field, link=head.segment, right=True, bold=last).bottom + 3
    return y


def receipt(people: Any, goods: Goods, language: str, rng: np.random.Generator) -> tuple[Page, Asked]:
    """Lay out a narrow receipt: seller, goods with amounts, total, cash and change."""
    style, terms = Style.sample(rng, 13, 15), _words(language)
    width = int(rng.integers(360, 440))
    page = Page(width, 1123, style)
    left, right, y = 24, width - 24, 20
    seller, bought = people.company(), random_day(rng).strftime(DATES[language])
    if rng.random() < 0.5:
        _sign(page, goods, width // 2 - 24, y, 48, rng)
        y += 56
    y = page.write(seller, left, y, field="seller", bold=True, scale=1.2, width=right - left).bottom
    for line in address_lines(people):
        y = page.write(line, left, y, width=right - left).bottom
    label = page.write(f"{terms['date']}:", left, y + 8, field="label")
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
    y = _sums(page, [("tax", f"{terms['tax']} {TAX[language]} %", round(total * TAX[language] / (100 + TAX[language]))),
                     ("total", terms["total"], total)], (left, right), y + 12, language)  # fmt: skip
    y = _sums(
        page, [("value", terms["cash"], cash), ("value", terms["change"], cash - total)], (left, right), y, language
    )
    y = page.write(terms["thanks"], left, y + 10, width=right - left).bottom
    page.cut(y + 20)
    return page, [
        ("What is the total?", _amount(total, language), "total"),
        ("What is the date of the receipt?", bought, "date"),
        ("Who sells?", seller, "seller"),
        ("How many different goods were bought?", str(len(basket)), "count"),
        ("How much change was given?", _amount(cash - total, language), "change"),
    ]
