"""Pages of which every image, caption, alternative text and section is known, in three languages, with media pages."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora.text_fields import COLUMNS

CONCEPTS = 10
WORDS = {
    "en": ("The red dome number {}", "a dome of stone", "Geology of the hills", "Rocks are old and hard, number {}."),
    "de": ("Die rote Kuppel Nummer {}", "eine Kuppel aus Stein", "Geologie der Hügel", "Steine sind alt und hart, {}."),
    "fr": ("Le dôme rouge numéro {}", "un dôme de pierre", "Géologie des collines", "Les roches sont vieilles, {}."),
}
HTML = """<!DOCTYPE html><html lang="{language}"><head><title>Dome {n} - Site</title></head><body>
<div class="nav"><p>Menu</p><img src="../images/button-up.png" alt="up"></div>
<h1>Dome {n}</h1>
<table class="infobox"><tr><td class="infobox-image"><a href="../File:dome_{n}.png.html"><img width="120" alt="Image"
  src="../images/dome_{n}.png"></a><div class="infobox-caption">{reference} in the box</div></td></tr></table>
<p>{text}</p>
<h2>{section}<span class="mw-editsection">[edit]</span></h2>
<p>{text} <img src="../images/flag.png" width="20" alt="flag"></p>
<h3>Detail</h3>
<figure><img src="../images/side_{n}.png" alt="{alt} {n}"><figcaption>{reference}</figcaption></figure>
<figure><img src="../images/side_{n}.png" alt="{alt} {n}"><figcaption>{reference}</figcaption></figure>
<p>{text}</p><img src="../images/small.png" alt="a small dome"><img src="../images/ruler.png" alt="a common ruler">
</body></html>"""
MEDIA = """<html><body><h1>File:dome_{n}.png</h1><div class="description" lang="en">{en}, seen from above</div>
<div class="description" lang="de">{de}, von oben</div>
<span class="licensetpl_short">CC BY-SA 3.0</span></body></html>"""


def written_pages(folder: Path) -> list[dict[str, Any]]:
    """Write pages, images and media pages; return the rows that are in them, of what the test compares."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"{kind}_{n}" for kind in ("dome", "side") for n in range(CONCEPTS)]
    for name in [*names, "button-up", "flag", "ruler"]:
        pixels = np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        PILImage.fromarray(pixels).save(folder / "images" / f"{name}.png")
    PILImage.new("RGB", (60, 200)).save(folder / "images" / "small.png")
    rows = []
    for n in range(CONCEPTS):
        title = {language: words[0].format(n) for language, words in WORDS.items()}
        (folder / f"File:dome_{n}.png.html").write_text(MEDIA.format(n=n, **title), encoding="utf-8")
        for language, (_, alt, section, text) in WORDS.items():
            values = {"language": language, "n": n, "reference": title[language], "alt": alt, "section": section}
            (folder / language).mkdir(exist_ok=True)
            page = f"{language}/{n}.html"
            (folder / page).write_text(HTML.format(text=text.format(n), **values), encoding="utf-8")
            of_dome = {"en": f"{title['en']}, seen from above", "de": f"{title['de']}, von oben"}
            common = {"language": language, "page_url": page, "page_title": f"Dome {n}"}
            context = {"context_page_description": text.format(n), "context_section_description": text.format(n)}
            rows.append(common | context | {
                "image_url": f"images/dome_{n}.png",
                "section_title": None,
                "hierarchical_section_title": f"Dome {n}",
                "caption_reference_description": f"{title[language]} in the box",
                "caption_attribution_description": of_dome.get(language, " ".join(of_dome.values())),
                "caption_alt_text_description": None,
                "attribution_passes_lang_id": language in of_dome,
                "is_main_image": True,
            })  # fmt: skip
            rows.append(common | context | {
                "image_url": f"images/side_{n}.png",
                "section_title": "Detail",
                "hierarchical_section_title": f"Dome {n} / {section} / Detail",
                "caption_reference_description": title[language],
                "caption_attribution_description": None,
                "caption_alt_text_description": f"{alt} {n}",
                "attribution_passes_lang_id": None,
                "is_main_image": False,
            })  # fmt: skip
    return rows


def released(folder: Path, names: dict[str, range]) -> Path:
    """Write the rows of pages as the release has them: TSV files, images named by the end of their URL."""
    rows = written_pages(folder)
    for name, members in names.items():
        with gzip.open(folder / name, "wt", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(COLUMNS), delimiter="\t")
            writer.writeheader()
            for row in (rows[place] for place in members):
                url = "https://upload.example/" + row["image_url"].replace("_", "%5F")
                plain = {**row, "image_url": url, "original_height": 120}
                writer.writerow({key: "" if value is None else value for key, value in plain.items()})
    return folder
