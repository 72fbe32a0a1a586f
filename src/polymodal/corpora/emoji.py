"""The base emoji as four vendors draw them, with names and keywords in 20 languages.

1,911 concepts. Images: 64 x 64 px PNG of emoji-datasource (Google, Twitter), and SVG of Microsoft's Fluent (flat) and
OpenMoji, rendered at that size; texts: Unicode CLDR. A concept's captions in a language are its name ("hot pepper") and
its keywords in one line ("chili, hot, pepper, spicy"). Concepts that look alike (gender variants, skin tones, keycaps,
clocks, flags, and images that are almost equal pixel by pixel) form one group, and a group never straddles a split.
The splits `train`, `validation` and `test` hold Google's images; `test_twitter`, `test_fluent` and `test_openmoji`
hold another vendor's images of the test concepts: the same question under a shift of domain. The other images of
these vendors are in no split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from polymodal.corpora._packages import NpmPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import Groups, join_alike, split_groups, thumbnail
from polymodal.corpora._svg import render_svg
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Image, Modality, Text

IMAGES = {
    "google": NpmPackage(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        74_344_091,
    ),
    "twitter": NpmPackage(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        61_683_754,
    ),
    "fluent": NpmPackage(
        "fluentui-emoji",
        "1.3.0",
        "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
        23_804_319,
    ),
    "openmoji": NpmPackage(
        "openmoji",
        "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        4_339_458,
    ),
}
NAMES = NpmPackage(
    "cldr-annotations-full",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    6_537_823,
)
DERIVED_NAMES = NpmPackage(
    "cldr-annotations-derived-full",
    "48.2.0",
    "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    4_233_628,
)
PACKAGES = (*IMAGES.values(), NAMES, DERIVED_NAMES)
LANGUAGES = (
    *("en", "de", "fr", "es", "pt", "ru", "uk", "ar", "he", "hi"),
    *("bn", "ta", "th", "zh", "ja", "ko", "tr", "vi", "sw", "el"),
)
SIDE = 64  # pixels

about = About(
    name="emoji",
    version=2,
    description="1,911 emoji drawn by four vendors, with names and keywords in 20 languages",
    license="images: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0), Fluent Emoji (MIT), OpenMoji (CC-BY-SA-4.0); "
    "texts: Unicode CLDR (Unicode-3.0)",
    source=f"npm: {', '.join(package.name for package in PACKAGES)}",
    modalities=("image", "text", "category"),
    download_bytes=sum(package.bytes for package in PACKAGES),
)


def emoji(english_share: float = 0.85) -> Corpus:
    """Open the corpus, fetching and preparing it once (175 MB).

    english_share: sampling probability of an English caption in training; the other 19 languages share the rest. Raises
    UserError when it cannot be fetched (npm, network, disk, wrong archive).
    """
    others = (1 - english_share) / (len(LANGUAGES) - 1)
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text(dict.fromkeys(LANGUAGES, others) | {"en": english_share}),
        "category": Category(),
        "vendor": Category(tuple(IMAGES)),
    }
    further = {"concept": pa.string(), "group": pa.string()}
    corpus = open_prepared(about, columns, _rows, further=further, label="category", prompts=_prompts)
    order = ("train", "validation", "test", *(f"test_{vendor}" for vendor in list(IMAGES)[1:]))
    return replace(corpus, splits={name: corpus.splits[name] for name in order})


def _prompts(category: str) -> tuple[str, ...]:
    """Return prompts of a category: 'Food & Drink' -> 'food & drink', 'food', 'drink'."""
    words = category.lower()
    return tuple(dict.fromkeys([words, *words.split(" & ")]))


def _rows(prepare: Preparation) -> Iterator[Row]:
    archives = {package.name: prepare.fetch(package) for package in PACKAGES}
    of_google = archives[IMAGES["google"].name]
    records = json.loads(next(members(of_google, "package/emoji.json".__eq__))[1])
    annotations = _annotations(archives[NAMES.name], archives[DERIVED_NAMES.name])
    names = [annotations["en"][_plain(_character(record["unified"]))][0] for record in records]
    images = {
        vendor: _by_record(vendor, _images(vendor, archives[package.name]), records, names)
        for vendor, package in prepare.track(IMAGES.items(), "Reading images", len(IMAGES))
    }
    groups = group_lookalikes(records, [images["google"][record["unified"]] for record in records])
    split_of = split_groups([record["category"] for record in records], groups)
    for vendor in IMAGES:
        for record, group, concept in zip(records, groups, names, strict=True):
            if record["unified"] not in images[vendor]:
                continue
            name = _plain(_character(record["unified"]))
            split = split_of[group]
            yield {
                "key": f"{vendor}/{record['unified'].lower()}",
                "image": images[vendor][record["unified"]],
                "captions": [
                    {"text": text, "language": language}
                    for language in LANGUAGES
                    for text in annotations[language][name]
                ],
                "category": record["category"],
                "vendor": vendor,
                "concept": concept,
                "group": group,
                "split": split if vendor == "google" else f"test_{vendor}" if split == "test" else None,
            }


FOLDERS = {
    "google": "package/img/google/64/",
    "twitter": "package/img/twitter/64/",
    "fluent": "package/icons/flat/",
    "openmoji": "package/color/svg/",
}


def _images(vendor: str, archive: Path) -> dict[str, bytes]:
    """Return file name -> PNG or SVG."""
    folder = FOLDERS[vendor]
    return {name.removeprefix(folder): data for name, data in members(archive, lambda name: name.startswith(folder))}


def _by_record(vendor: str, images: dict[str, bytes], records: list[dict], names: list[str]) -> dict[str, bytes]:
    """Return `unified` code -> PNG, for the concepts that the vendor has."""
    files = {_plain_code(file.removesuffix(".svg")): file for file in images} if vendor == "openmoji" else {}
    found = {}
    for record, name in zip(records, names, strict=True):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if vendor == "openmoji":
            candidates = [files.get(_plain_code(record["unified"]), "")]
        elif vendor == "fluent":
            candidates = [f"{slug}.svg", f"{slug}-default.svg"]  # "default": yellow skin
        else:
            candidates = [record["image"]]
        for file in candidates:
            if file in images:
                data = images[file]
                found[record["unified"]] = render_svg(data, SIDE) if file.endswith(".svg") else data
    return found


def _plain_code(unified: str) -> str:
    """Remove variation selectors from a code: '0031-FE0F-20E3' -> '0031-20E3'."""
    return unified.upper().replace("-FE0F", "")


def _character(unified: str) -> str:
    """Convert a code to characters, such as '1F1E6-1F1E8' to two."""
    return "".join(chr(int(code, 16)) for code in unified.split("-"))


def _plain(character: str) -> str:
    """Remove the variation selector, which CLDR and the image packages use differently."""
    return character.replace("\ufe0f", "")


def _annotations(*archives: Path) -> dict[str, dict[str, list[str]]]:
    """Return language -> character -> [name, keywords in one line]."""
    annotations: dict[str, dict[str, list[str]]] = {language: {} for language in LANGUAGES}
    pattern = re.compile(r"package/annotations(?:Derived)?/([^/]+)/annotations\.json")
    for archive in archives:
        for name, data in members(archive):
            match = pattern.fullmatch(name)
            if match is None or match[1] not in annotations:
                continue
            (outer,) = json.loads(data).values()
            for character, entry in outer["annotations"].items():
                if "tts" in entry:
                    texts = [entry["tts"][0], ", ".join(entry.get("default", []))]
                    annotations[match[1]][_plain(character)] = [text for text in dict.fromkeys(texts) if text]
    return annotations


PEOPLE = {"1F468", "1F469", "1F9D1"}  # man, woman, person
CHILDREN = {"1F466", "1F467", "1F9D2"}  # boy, girl, child
SIGNS_AND_JOINERS = {"200D", "2640", "2642", "FE0F", "27A1"}  # joiner, female, male, variation, "facing right"
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
GENDERED_WORDS = re.compile(
    r"\b(wo)?m[ae]n\b|\b(fe)?males?\b|\bpersons?\b|\bpeople\b|\bboys?\b|\bgirls?\b|\bchild(ren)?\b|\bladies\b"
    r"|\bprince(ss)?\b|\bfather\b|\bmother\b"
)


def group_lookalikes(records: list[dict], images: list[bytes]) -> list[str]:
    """Group records by the transitive closure of equality up to gender or skin tone, family, or image.

    records: of emoji.json.
    """
    same = Groups(len(records))
    same.join_equal((row, key) for row, record in enumerate(records) for key in _lookalike_keys(record))
    join_alike(same, np.stack([thumbnail(Image().decode(image)) for image in images]))
    return [records[same.root(row)]["unified"].lower() for row in range(len(records))]


def _lookalike_keys(record: dict) -> Iterator[str]:
    codes = record["unified"].split("-")
    without_person = ["person" if code in PEOPLE else "child" if code in CHILDREN else code for code in codes]
    bare = [code for code in without_person if code not in SIGNS_AND_JOINERS | SKIN_TONES]
    if bare:
        yield "codes " + "-".join(bare)
    name, gendered = GENDERED_WORDS.subn("", record["name"].lower())
    words = re.findall(r"\w+", name)
    if gendered and words:
        yield f"{record['subcategory']} {' '.join(words)}"
    if record["subcategory"] in {"keycap", "family", "skin-tone"}:
        yield record["subcategory"]
    if record["category"] == "Flags":
        yield "flag"
    if "CLOCK FACE" in record["name"]:
        yield "clock"
