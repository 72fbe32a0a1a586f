"""Crops of printed firm names with OCR text, six records of each of 900 firms, for record linkage.

Names are composed: an invented stem, a trade and a legal form, such as "Kanora Electric Works, Ltd.". Records of a firm
differ in what is abbreviated, in font, spacing, scale, turn, blur, paper and ink; characters of the text are wrong at a
rate that is sampled for each record, between 0 and 40 %, as a table of similar characters has them. Firms with the same
stem, in other trades, are in the same split: no firm of a test split is trained on. `test` and `validation` have such
rates, too; `test_clean`, `test_noisy` and `validation_clean`, `validation_noisy` have the same crops with texts without
errors, and with 40 % wrong characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFilter, ImageFont

from polymodal.corpora._ocr import read_texts
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.text import stored_texts

STEMS, TRADES_EACH, RECORDS = 450, 2, 6
SIDE, DRAWN = 64, 128  # pixels of a crop, and of what it is downscaled from
FONTS = (  # those that come with matplotlib, so that crops look the same on every machine
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10"),
)
TRADES = {  # a trade, and how it is abbreviated
    "Electric Works": "Elec. Wks.", "Manufacturing": "Mfg.", "Steel": "Stl.", "Chemical": "Chem.", "Silk Mills": "Silk",
    "Cotton Mills": "Cotton", "Shipping": "Shpg.", "Paper": "Ppr.", "Mining": "Min.", "Brewery": "Brew.",
    "Insurance": "Ins.", "Railway": "Rly.", "Trading": "Trdg.", "Engineering": "Engrg.", "Glass": "Gl.",
    "Fishery": "Fish.", "Sugar": "Sug.", "Cement": "Cem.", "Machinery": "Mach.", "Printing": "Prtg.",
}  # fmt: skip
FORMS = ("", "Co.", "Company", "Co., Ltd.", "Ltd.", "Limited", "K.K.")
ONSETS = ("k", "s", "t", "n", "h", "m", "r", "w", "y", "g", "z", "d", "b", "p", "sh", "ch", "")
RHYMES = ("a", "i", "u", "e", "o", "an", "en", "ai", "o", "a")

about = About(
    name="firm_names",
    description="5,400 crops of the names of 900 firms with OCR text, for record linkage",
    license="CC0-1.0 (composed here)",
    source="composed; fonts of matplotlib",
    modalities=("image", "text", "category"),
    composed="names are invented; crops are rendered, and errors of OCR sampled",
)


def firm_names() -> Corpus:
    """Open the corpus, preparing it once (half a minute)."""
    columns: dict[str, Modality] = {"image": Image(), "text": Text({"en": 1.0}), "firm": Category()}
    return open_prepared(about, columns, _rows, label="firm", prompts=lambda name: (name,))


def _rows(prepare: Preparation) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for stem in prepare.track(stems(rng), "Printing names", STEMS):
        split = split_by_hash(stem)
        for trade in rng.choice(list(TRADES), TRADES_EACH, replace=False).tolist():
            for number in range(RECORDS):
                yield from _record(stem, trade, number, split, rng)


def _record(stem: str, trade: str, number: int, split: str, rng: np.random.Generator) -> Iterator[Row]:
    """Yield the rows of a record: one a rate of wrong characters, and in training one alone."""
    lines = surface_form(stem, trade, rng)
    image = encoded(crop(lines, rng), "JPEG", quality=int(rng.integers(70, 95)))
    for one, text in read_texts(" ".join(lines), split, rng):
        yield {
            "key": f"{one}/{stem} {trade}/{number}",
            "split": one,
            "image": image,
            "text": stored_texts(text),
            "firm": f"{stem} {trade}",
        }


def stems(rng: np.random.Generator) -> list[str]:
    """Invent different names of two or three syllables."""
    names: dict[str, None] = {}
    while len(names) < STEMS:
        syllables = [f"{rng.choice(ONSETS)}{rng.choice(RHYMES)}" for _ in range(int(rng.integers(2, 4)))]
        names["".join(syllables).capitalize()] = None
    return [stem for stem in names if len(stem) > 3] + [f"{stem}mura" for stem in names if len(stem) <= 3]


def surface_form(stem: str, trade: str, rng: np.random.Generator) -> list[str]:
    """Return the lines of a name as it is printed."""
    written = TRADES[trade] if rng.random() < 0.4 else trade
    lines = [stem, written, str(rng.choice(FORMS))]
    capitals = rng.random() < 0.25
    return [line.upper() if capitals else line for line in lines if line]


def crop(lines: list[str], rng: np.random.Generator) -> PILImage.Image:
    """Print lines on paper and scan them."""
    import matplotlib

    font_file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{rng.choice(FONTS)}.ttf")
    paper = int(rng.integers(190, 256))
    image = PILImage.new("L", (DRAWN, DRAWN), paper)
    draw = ImageDraw.Draw(image)
    fill, width = int(rng.integers(0, 90)), rng.uniform(0.75, 0.95) * DRAWN
    size = min(34, *(_fitting(font_file, line, width) for line in lines))
    font = ImageFont.truetype(font_file, size)
    step = size * rng.uniform(1.05, 1.35)
    y = DRAWN / 2 - step * len(lines) / 2 + rng.uniform(-6, 6)
    is_centered, margin = rng.random() < 0.5, rng.uniform(3, 12)
    for line in lines:
        x = (DRAWN - font.getlength(line)) / 2 if is_centered else margin
        draw.text((x, y), line, font=font, fill=fill)
        y += step
    image = image.rotate(rng.uniform(-5, 5), PILImage.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))
    pixels = np.asarray(image.resize((SIDE, SIDE), PILImage.Resampling.BOX), dtype=np.float32)
    return PILImage.fromarray(
        np.clip(pixels + rng.normal(0, rng.uniform(2, 25), pixels.shape), 0, 255).astype(np.uint8)
    )


def _fitting(font_file: Path, line: str, width: float) -> int:
    """Return the font size at which a line is so many pixels wide."""
    return max(int(20 * width / ImageFont.truetype(font_file, 20).getlength(line)), 6)
