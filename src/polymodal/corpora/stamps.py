"""Tux Paint's stamps: images with captions in up to 77 languages, sound effects, and captions spoken in 12 languages.

Many are photographs, others drawings; SVG is rendered at 256 px. A caption that stands with its full stop first (Arabic
and a few others, a trace of right-to-left editing) gets it back to the end. Spoken captions are recordings of people.
Stamps with the same English caption, or almost the same image (mirrored or not), never straddle a split.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from PIL import Image as PILImage

from polymodal.corpora._packages import DebianPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import Groups, join_alike, split_groups, thumbnail
from polymodal.corpora._svg import render_svg
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Audio, Category, Image, Modality, Recordings, Text
from polymodal.modalities.image import encoded, open_image

PACKAGE = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    160_880_444,
)
FOLDER = "usr/share/tuxpaint/stamps/"
SIDE = 256  # pixels of the longer side
ENGLISH_SHARE = 0.5  # of the captions that training draws

about = About(
    name="stamps",
    description="950 images with captions in up to 77 languages, sound effects and spoken captions",
    license="GPL-2 (the package as a whole; many images are in the public domain)",
    source=f"Debian: {PACKAGE.name}",
    modalities=("image", "text", "audio", "category"),
    download_bytes=PACKAGE.bytes,
)


def stamps() -> Corpus:
    """Open the corpus, fetching and preparing it once (161 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text({"en": 77 * ENGLISH_SHARE / (1 - ENGLISH_SHARE)}),
        "sound": Audio(),
        "spoken": Recordings(),
        "category": Category(),
    }
    return open_prepared(about, columns, _rows, label="category", prompts=_prompts)


def _prompts(category: str) -> tuple[str, ...]:
    return {"naturalforces": ("a force of nature", "weather"), "town": ("a building", "a street", "a sign")}.get(
        category, (category,)
    )


def _rows(prepare: Preparation) -> Iterator[Row]:
    archive = prepare.fetch(PACKAGE)
    wanted = re.compile(r"\.(png|svg|txt|ogg|wav)$").search
    files = {
        name.removeprefix(FOLDER): data
        for name, data in prepare.track(members(archive, lambda name: bool(wanted(name))), "Reading stamps")
        if name.startswith(FOLDER)
    }
    captions = {name[:-4]: parse_captions(data) for name, data in files.items() if name.endswith(".txt")}
    images = {}
    for stamp in prepare.track(sorted(captions), "Drawing stamps", len(captions)):
        if captions[stamp] and (image := _image(files, stamp)) is not None:
            images[stamp] = image
    spoken: dict[str, list[dict]] = {}
    for name, data in sorted(files.items()):
        if match := re.fullmatch(r"(.+)_desc(?:_(\w+))?\.ogg", name):
            spoken.setdefault(match[1], []).append({"language": (match[2] or "en").replace("_", "-"), "sound": data})
    names = list(images)
    same = Groups(len(names))
    same.join_equal((row, captions[name][0]["text"].lower()) for row, name in enumerate(names))
    join_alike(same, np.stack([thumbnail(images[name]) for name in names]), mirrored=True)
    groups = [names[same.root(row)] for row in range(len(names))]
    categories = [PurePosixPath(name).parts[0] for name in names]
    split_of = split_groups(categories, groups)
    for name, group, category in zip(names, groups, categories, strict=True):
        yield {
            "key": name,
            "split": split_of[group],
            "image": encoded(images[name]),
            "captions": captions[name],
            "sound": files.get(f"{name}.ogg", files.get(f"{name}.wav")),
            "spoken": spoken.get(name),
            "category": category,
        }


def _image(files: dict[str, bytes], stamp: str) -> PILImage.Image | None:
    """Return the PNG, downscaled if it is large, or the rendered SVG."""
    if f"{stamp}.png" in files:
        image = Image().decode(files[f"{stamp}.png"]).convert("RGBA")
        image.thumbnail((SIDE, SIDE), PILImage.Resampling.LANCZOS)
        return image
    if f"{stamp}.svg" in files:
        return open_image(render_svg(files[f"{stamp}.svg"], SIDE))
    return None


def parse_captions(data: bytes) -> list[dict[str, str]]:
    """Parse captions, English first, then `<locale>.utf8=<caption>` lines, to {"text", "language"} records (BCP 47)."""
    first, *others = data.decode("utf-8", errors="replace").splitlines() or [""]
    captions = {"en": plain(first)}
    for line in others:
        locale, separator, caption = line.partition(".utf8=")
        if separator:
            language = locale.replace("_", "-").replace("sr@latin", "sr-Latn").replace("@", "-")
            captions.setdefault(language, plain(caption))
    return [{"text": text, "language": language} for language, text in captions.items() if text]


def plain(caption: str) -> str:
    """Normalize a caption: single spaces, NFC, and a leading full stop moved to the end."""
    text = unicodedata.normalize("NFC", " ".join(caption.split()))
    return f"{text[1:].strip()}." if re.match(r"\.[^\W\d]", text) else text
