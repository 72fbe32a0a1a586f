"""Flickr30k and Flickr8k captions (`results_20130124.token`, `results.csv`, `captions.txt`), and Flickr30k Entities
(Plummer et al. 2015): `Sentences/*.txt` with marked phrases, `Annotations/*.xml` with their boxes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import Annotations, annotated_rows, annotation_table, chunks_of
from polymodal.corpora.formats._data_files import SPLIT_NAMES, DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._xml import XmlElement, read_xml
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Expressions, Text
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "Flickr30k: captions in .token or '|' files, or Entities (Sentences/*.txt, Annotations/*.xml)"
CAPTIONS = pa.schema({"file_name": pa.string(), "captions": pa.list_(pa.string())})
ENTITIES = pa.schema(
    {"file_name": pa.string(), "captions": pa.list_(pa.string()), "expressions": Expressions().arrow_type}
)
_IMAGE = rf"[^|\t,#]+?(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})"
# `1000092795.jpg#0 <tab> Two young guys ...`; `1000092795.jpg| 0| Two young guys ...`; one published line lacks its
# second bar.
_TOKEN = re.compile(rf"({_IMAGE})#\d+(?:\s*\t|\s)(.*)", re.IGNORECASE)
_BARS = re.compile(rf"({_IMAGE})\s*\|\s*\d+\s*\|?\s*(.*)", re.IGNORECASE)
_COMMA = re.compile(rf"({_IMAGE}),(.*)", re.IGNORECASE)  # of `captions.txt`
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[\w-]+)*)\s+([^\]]*)\]")
_MARK = re.compile(r"\[/EN#\d+/")
MAX_SKIPPED = 0.1  # of the lines, until the file is refused
HEAD = 1 << 12  # bytes that are looked at


def matches(data: DataFiles) -> Match:
    """Match by the first lines of files of captions, and of one file of sentences."""
    return Match.CONTENT if _sentence_files(data) or _caption_files(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read captions, and expressions with boxes of Entities. Raises UserError where there are neither."""
    sentences, captions = _sentence_files(data), _caption_files(data)
    if not (sentences or captions):
        raise UserError(f"{data.given[0]} has no captions of Flickr30k, such as `1.jpg#0<tab>Two men ...`.")
    annotations = Annotations({"captions": Text()})
    if sentences:
        boxes = {file.stem: file for file in data.with_suffixes((".xml",))}
        pairs = [(file, boxes.get(file.stem)) for file in sentences]
        files = [*sentences, *(box for _, box in pairs if box is not None)]
        annotations.columns["expressions"] = Expressions()
        annotations.add(sentences[0], *annotation_table("flickr30k_entities", files, lambda: _convert_entities(pairs)))
    for file in captions:
        annotations.add(file, *annotation_table("flickr30k", [file], partial(_convert_captions, file)))
    annotations.splits = _splits(data, annotations.tables)
    return annotated_rows(data, annotations, ImageFiles.of(data))


def _head(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(HEAD).decode("utf-8-sig", errors="ignore")
    except OSError:
        return ""


def _sentence_files(data: DataFiles) -> list[Path]:
    texts = [file for file in data.with_suffixes((".txt",)) if file.parent.name.lower() == "sentences"]
    return texts if texts and _MARK.search(_head(texts[0])) else []


def _caption_files(data: DataFiles) -> list[Path]:
    candidates = [file for file in data.with_suffixes((".token", ".csv")) if file.suffix == ".token" or _has_bars(file)]
    named = [file for file in data.with_suffixes((".txt",)) if ".token" in file.name.lower() or file in data.given]
    named = [file for file in named if _line(_head(file).split("\n")[0].strip(), (_TOKEN,))]
    # Flickr8k has its captions a second time, as lemmas.
    candidates += [file for file in data.with_suffixes((".txt",)) if file not in data.crowded and _is_headed(file)]
    return [*candidates, *([file for file in named if "lemma" not in file.name.lower()] or named)]


def _is_headed(file: Path) -> bool:
    """Return whether a text file has the headings of Flickr8k on Kaggle, and a line of an image and a caption."""
    heading, _, rest = _head(file).partition("\n")
    return heading.strip().lower() == "image,caption" and _COMMA.fullmatch(rest.partition("\n")[0].strip()) is not None


def _has_bars(file: Path) -> bool:
    lines = _head(file).splitlines()[1:3]
    return bool(lines) and all(_BARS.fullmatch(line.strip()) for line in lines[:1])


def _line(line: str, forms: Sequence[re.Pattern[str]]) -> tuple[str, str] | None:
    """Return the image and the caption of a line; None for another line."""
    for form in forms:
        match = form.fullmatch(line)
        if match and match[2].strip():
            return match[1].strip(), match[2].strip()
    return None


def _convert_captions(file: Path) -> Conversion:
    by_image: dict[str, list[str]] = defaultdict(list)
    bad: list[str] = []
    total = 0
    forms = (_COMMA,) if _is_headed(file) else (_TOKEN, _BARS)
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        if not line.strip() or (number == 1 and line.lower().startswith(("image_name", "image|", "image,"))):
            continue
        total += 1
        read = _line(line.strip(), forms)
        if read is None:
            bad.append(f"{file.name}, line {number}: {line[:60]}")
        else:
            quoted = _QUOTED.fullmatch(read[1]) if _COMMA in forms else None
            by_image[read[0]].append(quoted[1].replace('""', '"').strip() if quoted else read[1])
    if len(bad) > MAX_SKIPPED * total or not by_image:
        example = bad[0] if bad else "it is empty"
        raise UserError(f"{len(bad):,} of {total:,} lines of {file} are no captions of Flickr30k ({example}).")
    records = ({"file_name": name, "captions": captions} for name, captions in by_image.items())
    return Conversion(CAPTIONS, chunks_of(records, CAPTIONS), _skipped(bad, "is no image with a caption"))


def _convert_entities(pairs: Sequence[tuple[Path, Path | None]]) -> Conversion:
    skipped: list[Skipped] = []
    return Conversion(ENTITIES, chunks_of(_entities(pairs, skipped), ENTITIES), skipped)


def _skipped(bad: Sequence[str], reason: str) -> list[Skipped]:
    return [Skipped(len(bad), reason, bad[0])] if bad else []


def _entities(pairs: Sequence[tuple[Path, Path | None]], skipped: list[Skipped]) -> Iterator[dict[str, Any]]:
    bad: list[str] = []
    for sentences, boxes in pairs:
        marked = [line for line in sentences.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        record: dict[str, Any] = {
            "file_name": f"{sentences.stem}.jpg",
            "captions": [" ".join(_PHRASE.sub(r"\3", line).split()) for line in marked],
        }
        if boxes is not None:
            try:
                record["expressions"] = _expressions(marked, _boxes(read_xml(boxes)))
            except (UserError, ValueError) as error:
                bad.append(f"{boxes.name}: {error}")
        yield record
    skipped += _skipped(bad, "has boxes that cannot be read")


def _expressions(marked: Sequence[str], boxes: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Return the phrases that have boxes; a phrase for a group of objects has all of theirs."""
    expressions: dict[tuple[str, str], dict[str, Any]] = {}
    for line in marked:
        for match in _PHRASE.finditer(line):
            entity, phrase = match[1], " ".join(match[3].split())
            if entity in boxes and phrase:
                stored = {"text": phrase, "boxes": boxes[entity], "clauses": 0}
                expressions.setdefault((entity, phrase.lower()), stored)
    return list(expressions.values())


def _boxes(root: XmlElement) -> dict[str, list[list[float]]]:
    """Return the boxes of each entity; pixels are counted from 1 in the files. Raises ValueError for a box that is
    none."""
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for one in root.findall("object"):
        place = one.find("bndbox")
        if place is not None:
            edges = [float(place.findtext(name) or "nan") - 1 for name in ("xmin", "ymin", "xmax", "ymax")]
            if not edges[0] < edges[2] or not edges[1] < edges[3]:
                raise ValueError(f"a box is {edges}")
            for name in one.findall("name"):
                boxes[name.text or ""].append([max(edge, 0.0) for edge in edges])
    return dict(boxes)


def _splits(data: DataFiles, tables: Sequence[pa.Table]) -> list[np.ndarray]:
    """Return the split of each row by `train.txt`, `val.txt`, `test.txt`, which list images; none where there are no
    such files. Images in no list are of no split. Flickr8k
    calls them `Flickr_8k.trainImages.txt`, `devImages`, `testImages`."""
    listed: dict[str, str] = {}
    for file in data.with_suffixes((".txt",)):
        name = file.stem.lower().removesuffix("images")  # Flickr_8k.trainImages.txt
        split = SPLIT_NAMES.get(re.split(r"[._]", name)[-1])
        if split is not None and file.parent.name.lower() != "sentences":
            lines = file.read_text("utf-8", errors="replace").split()
            listed |= {Path(line).stem: split for line in lines}
    if "train" not in listed.values():
        return []
    return [
        np.array([listed.get(Path(name).stem, "") for name in table.column("file_name").to_pylist()], dtype=object)
        for table in tables
    ]
