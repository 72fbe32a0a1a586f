"""The base emoji as Google and Twitter draw them, with names and keywords in 20 languages.

1,911 concepts x 2 vendors. Pictures: 64 x 64 px PNG of emoji-datasource; texts: Unicode CLDR. A concept's captions in a
language are its name ("hot pepper") and its keywords in one line ("chili, hot, pepper, spicy"). Concepts that look
alike (gender variants, skin tones, keycaps, clocks, flags, and pictures that are almost equal pixel by pixel) form one
group, and a group never straddles a split. The splits `train`, `validation` and `test` hold Google's pictures;
`test_twitter` holds Twitter's pictures of the test concepts: the same question under a shift of domain.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage
from rich.progress import Progress

from polymodal.corpora._cache import prepared
from polymodal.corpora._npm import NpmPackage, fetch
from polymodal.corpora._splits import Groups, split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Image, Text
from polymodal.modalities.image import to_rgb

PICTURES = {
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
LANGUAGES = (
    *("en", "de", "fr", "es", "pt", "ru", "uk", "ar", "he", "hi"),
    *("bn", "ta", "th", "zh", "ja", "ko", "tr", "vi", "sw", "el"),
)
FORMAT = 1  # raised when preparation changes, so that an old cache is not read

about = About(
    name="emoji",
    description="1,911 emoji drawn by Google and by Twitter, with names and keywords in 20 languages",
    licence="pictures: Noto Emoji (Apache-2.0), Twemoji (CC-BY-4.0); texts: Unicode CLDR (Unicode-3.0)",
    source=f"npm: {', '.join(package.name for package in (*PICTURES.values(), NAMES, DERIVED_NAMES))}",
    modalities=("image", "text", "category"),
    download_bytes=sum(package.bytes for package in (*PICTURES.values(), NAMES, DERIVED_NAMES)),
)

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.struct({"text": pa.string(), "language": pa.string()})),
        "category": pa.string(),
        "vendor": pa.string(),
        "concept": pa.string(),
        "group": pa.string(),
        "split": pa.string(),
    }
)


def emoji(english_share: float = 0.85) -> Corpus:
    """Open the corpus, after fetching and preparing it (147 MB, once) when it is not in the cache.

    english_share: the probability that training draws an English caption; the other 19 languages share the rest.
    Raises UserError when it cannot be fetched (npm, network, disk, wrong archive).
    """
    folder = prepared(f"emoji-{FORMAT}", _prepare)
    table = pa.ipc.open_file(pa.memory_map(str(folder / "emoji.arrow"))).read_all()
    vendor, split = (np.array(table.column(name).to_pylist()) for name in ("vendor", "split"))
    others = (1 - english_share) / (len(LANGUAGES) - 1)
    categories = tuple(sorted(set(table.column("category").to_pylist())))
    splits = {name: np.flatnonzero((split == name) & (vendor == "google")) for name in ("train", "validation", "test")}
    splits["test_twitter"] = np.flatnonzero((split == "test") & (vendor == "twitter"))
    return Corpus(
        about=about,
        table=table,
        columns={
            "image": Image(),
            "captions": Text(dict.fromkeys(LANGUAGES, others) | {"en": english_share}),
            "category": Category(categories),
            "vendor": Category(tuple(PICTURES)),
        },
        splits=splits,
        keys="key",
        label="category",
        prompts={name: _prompts(name) for name in categories},
        choices={"corpus": "emoji"},
    )


def _prompts(category: str) -> tuple[str, ...]:
    """'Food & Drink' -> 'food & drink', 'food', 'drink'."""
    words = category.lower()
    return tuple(dict.fromkeys([words, *words.split(" & ")]))


def _prepare(folder: Path) -> None:
    with Progress(transient=True) as progress:
        packages = [*PICTURES.values(), NAMES, DERIVED_NAMES]
        task = progress.add_task("Fetching emoji", total=about.download_bytes)
        archives = {}
        for package in packages:
            progress.update(task, description=f"Fetching {package.name}")
            archives[package.name] = fetch(package, "emoji")
            progress.advance(task, package.bytes)
        progress.update(task, description="Reading names in 20 languages", total=None)
        records = json.loads(_member(archives[PICTURES["google"].name], "package/emoji.json"))
        annotations = _annotations(archives[NAMES.name], archives[DERIVED_NAMES.name])
        pictures = {}
        for vendor, package in PICTURES.items():
            progress.update(task, description=f"Reading pictures of {vendor}")
            pictures[vendor] = _pictures(archives[package.name], f"package/img/{vendor}/64/")
        progress.update(task, description="Grouping look-alikes")
        groups = group_lookalikes(records, [pictures["google"][record["image"]] for record in records])
        split_of = split_groups([record["category"] for record in records], groups)
        rows = []
        for vendor in PICTURES:
            for record, group in zip(records, groups, strict=True):
                name = _plain(_character(record["unified"]))
                rows.append(
                    {
                        "key": f"{vendor}/{record['unified'].lower()}",
                        "image": pictures[vendor][record["image"]],
                        "captions": [
                            {"text": text, "language": language}
                            for language in LANGUAGES
                            for text in annotations[language][name]
                        ],
                        "category": record["category"],
                        "vendor": vendor,
                        "concept": annotations["en"][name][0],
                        "group": group,
                        "split": split_of[group],
                    }
                )
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        with pa.ipc.new_file(str(folder / "emoji.arrow"), SCHEMA) as writer:
            writer.write_table(table, max_chunksize=256)
    for archive in archives.values():
        archive.unlink()


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files of an archive, read in order; nothing is extracted to disk."""
    with tarfile.open(archive, mode="r|gz") as tar:
        for member in tar:
            if member.isfile():
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def _pictures(archive: Path, folder: str) -> dict[str, bytes]:
    return {name.removeprefix(folder): data for name, data in _members(archive) if name.startswith(folder)}


def _character(unified: str) -> str:
    """'1F1E6-1F1E8' -> the two characters."""
    return "".join(chr(int(code, 16)) for code in unified.split("-"))


def _plain(character: str) -> str:
    """Without the variation selector, which CLDR and the picture packages use differently."""
    return character.replace("\ufe0f", "")


def _annotations(*archives: Path) -> dict[str, dict[str, list[str]]]:
    """language -> character -> [name, keywords in one line]."""
    found: dict[str, dict[str, list[str]]] = {language: {} for language in LANGUAGES}
    pattern = re.compile(r"package/annotations(?:Derived)?/([^/]+)/annotations\.json")
    for archive in archives:
        for name, data in _members(archive):
            match = pattern.fullmatch(name)
            if match is None or match[1] not in found:
                continue
            (outer,) = json.loads(data).values()
            for character, entry in outer["annotations"].items():
                if "tts" in entry:
                    texts = [entry["tts"][0], ", ".join(entry.get("default", []))]
                    found[match[1]][_plain(character)] = [text for text in dict.fromkeys(texts) if text]
    return found


PEOPLE = {"1F468", "1F469", "1F9D1"}  # man, woman, person
CHILDREN = {"1F466", "1F467", "1F9D2"}  # boy, girl, child
SIGNS_AND_JOINERS = {"200D", "2640", "2642", "FE0F", "27A1"}  # joiner, female, male, variation, "facing right"
SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
GENDERED_WORDS = re.compile(
    r"\b(wo)?m[ae]n\b|\b(fe)?males?\b|\bpersons?\b|\bpeople\b|\bboys?\b|\bgirls?\b|\bchild(ren)?\b|\bladies\b"
    r"|\bprince(ss)?\b|\bfather\b|\bmother\b"
)


def group_lookalikes(records: list[dict], pictures: list[bytes], tolerance: float = 4.0) -> list[str]:
    """The group of each record: transitive closure of 'the same but for gender or skin', 'same family', 'same picture'.

    records: of emoji.json. tolerance: mean absolute difference of 16 x 16 px thumbnails, on the scale 0-255, up to
    which two pictures count as the same.
    """
    same = Groups(len(records))
    same.join_equal((row, key) for row, record in enumerate(records) for key in _lookalike_keys(record))
    thumbnails = np.stack([_thumbnail(picture) for picture in pictures])
    for row, thumbnail in enumerate(thumbnails):
        difference = np.abs(thumbnails[row:] - thumbnail).mean(axis=1)
        same.join([row, *(row + np.flatnonzero(difference <= tolerance))])
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


def _thumbnail(picture: bytes) -> np.ndarray:
    small = to_rgb(PILImage.open(io.BytesIO(picture))).resize((16, 16), PILImage.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()
