"""Candidate pairs of a list of concepts: names and aliases, images by concept, automatic cleaning, a queue to check.

Each step has counts in and out. What a dual encoder thinks of image and name only orders the queue: a model that does
not know a culture would drop what it does not know.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.constraints import NonNegativeInt, PositiveInt, TailFraction
from polymodal.corpora._splits import connected_groups
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.formats._items import read_rows
from polymodal.corpora.saved import check_empty, save_corpus
from polymodal.corpora.sources import from_path
from polymodal.curation.perceptual_hash import both_hashes, first_copies
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.cultural_gap import GENERAL
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.image import encoded
from polymodal.modalities.image_modes import to_rgb
from polymodal.modalities.text import stored_texts
from polymodal.training.folder_lock import writes

CULTURAL = "cultural"  # the culture of concepts whose list has no column for it
STATUSES = ("unchecked", "validated")
NAME, TEXTS = "concept", ("text", "caption", "description")  # columns of images
COLUMNS = ("concept", "aliases", "category", "culture", "description", "background", "specific")  # of a list
ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670]")  # Latin, Hebrew, Arabic
ARTICLE = re.compile(r"^(the|al|el|as|ash|an|at|ad|ar|az) ")
FURTHER = {"source": pa.string(), "license": pa.string(), "background": pa.string(), "note": pa.string()}


@dataclass(frozen=True)
class Concept:
    """A concept of a list. specific: whether experts hold it for specific to the culture."""

    name: str
    aliases: tuple[str, ...] = ()
    category: str = ""
    culture: str = CULTURAL
    description: str = ""
    background: str = ""
    specific: bool = True


@dataclass
class StepCount:
    """How many concepts or images a step took and left, and why others went."""

    step: str
    taken: int = 0
    left: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, step: str, taken: int, reasons: Iterable[str]) -> StepCount:
        counted = Counter(reasons)
        return cls(step, taken, taken - counted.total(), counted)


@dataclass(frozen=True)
class CollectOptions:
    """Options of collecting."""

    min_side: PositiveInt = 200
    """Minimum length of an image's shorter side in pixels."""
    max_distance: NonNegativeInt = 4
    """Largest number of different bits, of 64, of the perceptual hashes of copies of an image."""
    keep_unlicensed: bool = False
    """Keep images without a license; a corpus that is to be released cannot."""
    max_per_concept: NonNegativeInt = 0
    """Maximum number of images of a concept, the first ones; 0: no maximum. About 10 in the paper."""
    validation_fraction: TailFraction = 0.1
    """Fraction of the sources whose images are for validation."""
    test_fraction: TailFraction = 0.4
    """Fraction of the sources whose images are for the test: a source is in one split alone."""
    language: str = "en"
    """Language code of names and descriptions."""


def read_concepts(path: Path | str) -> list[Concept]:
    """Read a list of concepts from a CSV, TSV or JSON lines file.

    Columns: concept; and optionally aliases (separated by semicolons, or a list), category, culture, description,
    background, and specific (0 for what other cultures have as well). Rows without a name are left out. Raises
    UserError for a file without concepts, and for a column whose name is nearly one of these.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}; give a CSV file of concepts, with a column 'concept'.")
    table, _ = read_rows(Path(path))
    records = table.to_pylist()
    if "concept" not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(f"{path} has no column 'concept' with the names of concepts; it has {columns}.")
    for name in table.column_names:
        meant = get_close_matches(name.casefold(), COLUMNS, n=1, cutoff=0.75)
        if meant and name not in COLUMNS and meant[0] not in table.column_names:
            raise UserError(f"The column '{name}' of {path} is not read; did you mean '{meant[0]}'?")

    def concept(record: Mapping[str, Any]) -> Concept:
        texts = {name: str(value).strip() for name, value in record.items() if value is not None}
        listed = record.get("aliases")
        aliases = map(str, listed) if isinstance(listed, list) else texts.get("aliases", "").split(";")
        return Concept(
            texts["concept"],
            tuple(filter(None, (alias.strip() for alias in aliases))),
            texts.get("category", ""),
            texts.get("culture", "") or (GENERAL if "culture" in record else CULTURAL),
            texts.get("description", ""),
            texts.get("background", ""),
            texts.get("specific", "1").casefold() not in ("0", "0.0", "false", "no"),
        )

    concepts = [concept(record) for record in records if normalize_name(str(record["concept"] or ""))]
    if not concepts:
        raise UserError(f"{path} has no concept; write one a line below the heading 'concept'.")
    return concepts


def normalize_name(name: str) -> str:
    """Return a name without accents, capitals, punctuation and a leading article, which transliterations vary in.

    Marks of other scripts stay: without them, words of Hindi or Japanese are other words.
    """
    plain = ACCENTS.sub("", unicodedata.normalize("NFKD", name.casefold()))
    words = "".join(mark if mark.isalnum() or unicodedata.category(mark)[0] == "M" else " " for mark in plain).split()
    return ARTICLE.sub("", " ".join(words))


def merge_concepts(concepts: Sequence[Concept]) -> tuple[list[Concept], list[StepCount]]:
    """Merge concepts with a name or an alias in common, the first one's name remaining, and drop unspecific ones.

    Concepts of the culture `general` are for comparison and are specific to none.
    """
    groups, of_name = list[list[Concept]](), dict[str, list[Concept]]()
    for concept in concepts:
        names = {normalize_name(name) for name in (concept.name, *concept.aliases)} - {""}
        joined = list({id(of_name[name]): of_name[name] for name in sorted(names) if name in of_name}.values())
        group = [one for other in joined for one in other] + [concept]
        groups = [other for other in groups if all(other is not one for one in joined)] + [group]
        for one in group:
            of_name |= {normalize_name(name): group for name in (one.name, *one.aliases)}
    order = {id(concept): place for place, concept in enumerate(concepts)}
    ordered = [sorted(group, key=lambda one: order[id(one)]) for group in groups]
    merged = [_merged(group) for group in sorted(ordered, key=lambda group: order[id(group[0])])]
    specific = [concept for concept in merged if concept.specific or concept.culture == GENERAL]
    return specific, [
        StepCount.of("merge names", len(concepts), ["transliteration"] * (len(concepts) - len(merged))),
        StepCount.of("specific", len(merged), ["in other cultures, too"] * (len(merged) - len(specific))),
    ]


def _merged(group: Sequence[Concept]) -> Concept:
    first = group[0]
    aliases = dict.fromkeys(name for one in group for name in (one.name, *one.aliases) if name != first.name)
    texts = {
        name: next(filter(None, (getattr(one, name) for one in group)), "")
        for name in ("category", "description", "background")
    }
    return replace(first, aliases=tuple(aliases), specific=all(one.specific for one in group), **texts)


@dataclass
class CollectedImage:
    """An image that was collected for a concept. row: of the images. note: what annotators are told.

    copied: row of the first image, under any name, that it is a copy of; -1 for none.
    """

    row: int
    concept: Concept
    hashes: np.ndarray
    source: str = ""
    license: str = ""
    text: str = ""
    note: str = ""
    score: float = 0.0
    copied: int = -1


def open_images(path: str) -> Corpus:
    """Open images of the user's with a column `concept`, or else with a folder for each class."""
    try:
        return from_path(path, text=NAME)  # among several columns of texts, which have no captions
    except UserError:
        return from_path(path)


def image_bytes(images: Corpus, row: int) -> bytes:
    """Return an image as it is stored; of one that is stored as a path, its pixels as PNG."""
    stored = images.raw(row, images.column_with(Image))
    data = stored.get("bytes") if isinstance(stored, dict) else stored
    return data if isinstance(data, bytes) else encoded(to_rgb(images.value(row, images.column_with(Image))))


def collect(
    concepts: Sequence[Concept], images: Corpus, options: CollectOptions
) -> tuple[list[CollectedImage], list[StepCount]]:
    """Return the images of the concepts after automatic cleaning, with the counts of each step.

    images: with a column `concept` of names or aliases, or a label, and optionally `source`, `license`, and `text`,
    `caption` or `description`. A further image of its own concept that is a copy goes; one that is a copy of another
    concept's stays, with a note for annotators, as either name may be the wrong one. Raises UserError for images
    without names.
    """
    column = NAME if NAME in images.table.column_names else images.label
    if column is None:
        raise UserError(f"The images need a column 'concept', or a folder for each concept.{images.hint}")
    of_name = {normalize_name(name): one for one in concepts for name in (one.name, *one.aliases)}
    of_name.pop("", None)  # an alias of punctuation alone would be the name of all images without one
    rows = np.sort(np.concatenate([np.zeros(0, np.int64), *images.splits.values()]))
    values = {name: _texts(images, rows, name) for name in (column, "source", "license")}
    text = _texts(images, rows, next((name for name in TEXTS if name in images.table.column_names), ""))
    counts, candidates = [], list[CollectedImage]()
    named = [of_name.get(normalize_name(name)) for name in values[column]]
    counts.append(StepCount.of("images by concept", len(rows), ["no concept of the list" for one in named if not one]))
    image_column, reasons = images.column_with(Image), list[str]()
    for place, (row, concept) in enumerate(zip(rows.tolist(), named, strict=True)):
        if concept is None:
            continue
        try:
            image = to_rgb(images.value(row, image_column))
        except UnreadableExample:
            reasons.append("unreadable")
            continue
        if min(image.size) < options.min_side:
            reasons.append("too small")
        elif not values["license"][place] and not options.keep_unlicensed:
            reasons.append("no license")
        else:
            about = values["source"][place], values["license"][place], text[place]
            candidates.append(CollectedImage(row, concept, both_hashes(image), *about))
    counts.append(StepCount.of("format, size, license", counts[-1].left, reasons))
    kept, gone = without_copies(candidates, options.max_distance)
    counts.append(StepCount.of("copies in a concept", len(candidates), gone))
    if options.max_per_concept:
        before, kept = len(kept), _capped(kept, options.max_per_concept)
        counts.append(StepCount.of("images a concept", before, ["over the maximum"] * (before - len(kept))))
    return kept, counts


def _texts(images: Corpus, rows: np.ndarray, column: str) -> list[str]:
    """Return texts of a column, empty where there are none; of several texts the first one."""
    if column not in images.table.column_names:
        return [""] * len(rows)
    values = images.raw_values(rows, column)
    firsts = [value[0]["text"] if isinstance(value, list) and value else value for value in values]
    return [str(value or "").strip() for value in firsts]


def without_copies(candidates: Sequence[CollectedImage], max_distance: int) -> tuple[list[CollectedImage], list[str]]:
    """Return candidates without copies in their own concepts; those that are under several concepts get a note."""
    members = defaultdict[str, list[int]](list)
    for place, one in enumerate(candidates):
        members[one.concept.name].append(place)
    dropped = set[int]()
    for places in members.values():
        copies = first_copies(np.stack([candidates[place].hashes for place in places]), max_distance)
        dropped |= {place for place, copy in zip(places, copies.tolist(), strict=True) if copy >= 0}
    kept = [one for place, one in enumerate(candidates) if place not in dropped]
    if not kept:
        return [], ["copy"] * len(dropped)
    groups = defaultdict[int, list[int]](list)
    for place, copy in enumerate(first_copies(np.stack([one.hashes for one in kept]), max_distance).tolist()):
        groups[place if copy < 0 else copy].append(place)
    for places in groups.values():
        for place in places:
            kept[place].copied = kept[places[0]].row if len(places) > 1 else -1
            others = sorted({kept[other].concept.name for other in places} - {kept[place].concept.name})
            kept[place].note = f"also collected as: {', '.join(others)}" if others else ""
    return kept, ["copy"] * len(dropped)


def _capped(candidates: Sequence[CollectedImage], cap: int) -> list[CollectedImage]:
    taken = Counter[str]()
    kept = []
    for one in candidates:
        taken[one.concept.name] += 1
        if taken[one.concept.name] <= cap:
            kept.append(one)
    return kept


def splits_of(candidates: Sequence[CollectedImage], images: Corpus, options: CollectOptions) -> list[str]:
    """Return the split of each candidate; images of a source, and copies of one under several names, are in one."""
    sources = [one.source or images.key(one.row) for one in candidates]
    groups = connected_groups(sources, [one.row if one.copied < 0 else one.copied for one in candidates])
    first: dict[str, str] = {}
    for group, source in zip(groups, sources, strict=True):
        first[group] = min(source, first.get(group, source))
    return [split_of(first[group], options) for group in groups]


def split_of(source: str, options: CollectOptions) -> str:
    """Return the split of all images of a source, by a hash of its name."""
    at = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") / 2**64
    if at < options.test_fraction:
        return "test"
    return "validation" if at < options.test_fraction + options.validation_fraction else "train"


@writes("out")
def write_candidates(
    concepts: Sequence[Concept],
    images: Corpus,
    out: Path | str,
    options: CollectOptions,
    fit: Callable[[Sequence[bytes], Sequence[str]], np.ndarray] | None = None,
) -> tuple[Corpus, list[StepCount]]:
    """Write the candidates as a corpus, in the order in which they are to be checked, and return the counts of steps.

    fit: how well images fit names, by which those that fit least are checked first; images under several names go
    before all. Raises UserError for a folder that is not empty, and when nothing is left.
    """
    check_empty(Path(out))
    merged, counts = merge_concepts(concepts)
    candidates, of_images = collect(merged, images, options)
    counts += of_images
    if not candidates:
        reasons = Counter[str](sum((one.reasons for one in of_images), Counter()))
        went = ", ".join(f"{reason} {times:,}" for reason, times in reasons.most_common())
        raise UserError(f"No image of {images.name} is left for a concept of the list ({went or 'there are none'}).")
    if fit is not None:
        for start in range(0, len(candidates), 256):
            some = candidates[start : start + 256]
            scores = fit([image_bytes(images, one.row) for one in some], [one.concept.name for one in some])
            for one, score in zip(some, scores.tolist(), strict=True):
                one.score = score
    queue = sorted(candidates, key=lambda one: (not one.note, one.score, one.row))
    licenses = "; ".join(sorted({one.license for one in queue} - {""})) or "not stated"
    about = About(
        Path(out).name, f"candidate pairs of {len(merged)} concepts", licenses, images.name, ("image", "text")
    )
    columns: dict[str, Modality] = {
        "image": Image(),
        "text": Text({options.language: 1.0}),
        **{name: Category(tuple(sorted({value(one.concept) for one in queue}))) for name, value in TAGS.items()},
        "status": Category(STATUSES),
    }
    made = {"options": asdict(options), "concepts": names_of(merged), "counts": recorded(counts)}
    rows = _rows(queue, images, options)
    return save_corpus(out, about, columns, rows, types=FURTHER, label="category", made=lambda: made), counts


TAGS: dict[str, Callable[[Concept], str]] = {
    "concept": lambda one: one.name,
    "category": lambda one: one.category or "other",
    "culture": lambda one: one.culture,
}


def _rows(queue: Sequence[CollectedImage], images: Corpus, options: CollectOptions) -> Iterator[dict[str, Any]]:
    for one, split in zip(queue, splits_of(queue, images, options), strict=True):
        text = one.text or one.concept.description or one.concept.name
        yield {
            "key": f"{one.concept.name}/{images.key(one.row)}",
            "split": split,
            "image": image_bytes(images, one.row),
            "text": stored_texts(*dict.fromkeys((one.concept.name, text)), language=options.language),
            **{name: value(one.concept) for name, value in TAGS.items()},
            "status": "unchecked",
            "source": one.source,
            "license": one.license,
            "background": one.concept.background,
            "note": one.note,
        }


def names_of(concepts: Sequence[Concept]) -> dict[str, Any]:
    """Return the version of a list: its names, and a digest of them."""
    names = [one.name for one in concepts]
    return {"names": names, "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def recorded(counts: Iterable[StepCount]) -> list[dict[str, Any]]:
    return [asdict(one) | {"reasons": dict(one.reasons)} for one in counts]
