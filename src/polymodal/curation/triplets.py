"""Image, regions and description: triplets of images that have no paired text (MedTrinity, Xie et al. 2025, section 3).

Metadata give a coarse caption, masks, boxes or a detector the regions, a knowledge base the snippets; a writer makes
five fields of them (B1), or a captioner that learned from such descriptions does (B3), which every example says.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.constraints import NonNegativeInt, PositiveInt, PositiveUnitInterval, validate_constraints
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import check_empty, save_corpus
from polymodal.curation.captions import check_generates_text, describe
from polymodal.curation.knowledge import KnowledgeBase
from polymodal.curation.multigranular import (
    Description,
    Metadata,
    Sources,
    Writer,
    option_question,
    reformat,
    write_description,
)
from polymodal.curation.regions_of_interest import ColorDetector, RegionOfInterest, region_of_box, regions_of_mask
from polymodal.errors import UnreadableExample, UserError
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Category, Image, Mask, Modality, Questions, Regions, Text
from polymodal.modalities.image import encoded, to_rgb
from polymodal.modalities.question import STORED, Question
from polymodal.modalities.text import stored_texts
from polymodal.training.folder_lock import writes
from polymodal.training.run import Run

WRITTEN, DISTILLED = PROVENANCES = ("B1", "B3")  # by the writer; by a captioner that learned from its descriptions
MAX_MASKED = 255  # regions of an 8-bit mask
SEVERAL_ANSWERS = pa.list_(pa.struct([*((name, pa.string()) for name in STORED), ("answers", pa.list_(pa.string()))]))
CHUNK = 64  # images that are searched for, and captioned, together
Detector = Callable[[np.ndarray, Sequence[str]], list[RegionOfInterest]]
"""From an image and the names of what is in it to the regions that are detected."""


@dataclass(frozen=True)
class TripletOptions:
    """Options of describing images without paired text."""

    modality: str = "image"
    """What kind of images these are, such as "chest X-ray"."""
    structure: str = ""
    """Organ or structure that all images show."""
    use_regions: bool = True
    """Whether regions of interest are a source."""
    max_regions: NonNegativeInt = 0
    """Maximum number of regions of an image; the released script keeps 2. 0: all."""
    num_retrieved: NonNegativeInt = 8
    """Number of distinct snippets of knowledge of an image; 0: none."""
    instruct_fraction: PositiveUnitInterval = 1.0
    """Fraction of the training images that the writer describes (B1) where there is a captioner for the others (B3);
    200,000 of 25 million in the paper."""
    max_new_tokens: PositiveInt = 256
    """Maximum number of tokens that the captioner generates."""
    label_questions: bool = False
    """Add the question which of all labels an image has; the label is then in no query for knowledge."""
    seed: NonNegativeInt = 0
    """Random seed of the images that the writer describes."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclass
class TripletCounts:
    """What became of the images.

    rejected: descriptions without one of the five fields. duplicates: training images that are in an evaluation split.
    unlocated: images without a region. unreadable: reasons by key.
    """

    described: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    unlocated: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the counts for JSON."""
        plain = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}
        return plain | {"unreadable": len(self.unreadable)}


@dataclass(frozen=True)
class Generators:
    """What describes: knowledge to retrieve, a detector of regions, a writer (B1), and a captioner (B3)."""

    knowledge: KnowledgeBase | None = None
    detect: Detector = field(default_factory=ColorDetector)
    write: Writer = write_description
    captioner: Run | None = None


@dataclass(frozen=True)
class _Loaded:
    """A row with its image, and what is known of it."""

    row: int
    pixels: np.ndarray
    metadata: Metadata
    regions: list[RegionOfInterest]
    questions: Sequence[Question] = ()


@writes("out")
def write_triplets(
    corpus: Corpus, out: Path | str, options: TripletOptions | None = None, generators: Generators | None = None
) -> tuple[Corpus, TripletCounts]:
    """Write a corpus of images with regions, mask, description, its provenance, and the questions that there are.

    Raises UserError for a folder that is not empty, for a corpus without images, and where nothing is described.
    """
    options, generators, counts = options or TripletOptions(), generators or Generators(), TripletCounts()
    check_empty(Path(out))
    corpus.column_with(Image)
    if options.label_questions and corpus.label is None:
        raise UserError(f"'{corpus.name}' has no label to ask for; leave --label-questions out.")
    if generators.captioner is not None:
        check_generates_text(generators.captioner)
    elif options.instruct_fraction < 1:
        raise UserError("--instruct-fraction leaves images to a captioner; name its run by --captioner, too.")
    asks = options.label_questions or corpus.has_modality(Questions)
    columns: dict[str, Modality] = {
        "image": Image(),
        "regions": Regions(),
        "mask": Mask(),
        "description": Text(),
        "provenance": Category(PROVENANCES),
    }
    if asks:
        columns["questions"] = Questions()
    about = About(
        name=Path(out).name,
        description=f"images of {corpus.name} with regions and multigranular descriptions",
        license=corpus.about.license,
        source=corpus.name,
        modalities=("image", "regions", "mask", "text"),
        composed="; ".join(filter(None, (corpus.about.composed, "descriptions are generated"))),
    )

    def rows() -> Iterator[dict[str, Any]]:
        some = False
        for some_row in _triplets(corpus, options, generators, counts):
            some = True
            yield some_row
        if not some:
            raise UserError(
                f"No image of '{corpus.name}' got a description: {sum(counts.rejected.values())} lack a field, "
                f"{len(counts.unreadable)} images are unreadable."
            )

    def made() -> dict[str, Any]:
        return {"options": dataclasses.asdict(options), "counts": counts.record()}

    types = {"questions": SEVERAL_ANSWERS} if asks else {}
    return save_corpus(out, about, columns, rows(), types=types, made=made), counts


def _triplets(
    corpus: Corpus, options: TripletOptions, generators: Generators, counts: TripletCounts
) -> Iterator[dict[str, Any]]:
    evaluated: set[bytes] = set()
    # Evaluation splits first: no description is made of a training image that is in one of them.
    for split in sorted(corpus.splits, key=lambda name: name == "train"):
        rows = corpus.rows(split)
        written = set(rows.tolist())
        if split == "train" and generators.captioner is not None:
            chosen = np.random.default_rng(options.seed).permutation(rows)
            written = set(chosen[: max(round(options.instruct_fraction * len(rows)), 1)].tolist())
        for start in range(0, len(rows), CHUNK):
            chunk: list[_Loaded] = []
            for row in rows[start : start + CHUNK].tolist():
                try:
                    loaded, digest = _load(corpus, row, options, generators.detect)
                except UnreadableExample as reason:
                    counts.unreadable[corpus.key(row)] = str(reason)
                    continue
                if split != "train":
                    evaluated.add(digest)
                elif digest in evaluated:
                    counts.duplicates += 1
                    continue
                chunk.append(loaded)
            for loaded, description, provenance in _described(chunk, written, options, generators):
                if description is None:
                    counts.rejected[provenance] += 1
                    continue
                counts.described[provenance] += 1
                counts.unlocated += not loaded.regions
                yield {"split": split, **_stored(corpus, loaded, description, provenance, options)}


def _load(corpus: Corpus, row: int, options: TripletOptions, detect: Detector) -> tuple[_Loaded, bytes]:
    """Return the image with its regions, and the hash of its pixels."""
    pixels = np.asarray(to_rgb(corpus.value(row, corpus.column_with(Image))))
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    boxes, questions = _given(corpus, row, Regions), _given(corpus, row, Questions)
    findings = tuple(dict.fromkeys(box.name for box in boxes or ()))
    if not findings:
        findings = _labels(corpus, row)
    metadata = Metadata(options.modality, options.structure, findings)
    regions: list[RegionOfInterest] = []
    if options.use_regions:
        limit = min(options.max_regions or MAX_MASKED, MAX_MASKED)
        regions = _regions(corpus, row, pixels, boxes, findings, detect)[:limit]
    return _Loaded(row, pixels, metadata, regions, questions or ()), digest


def _given(corpus: Corpus, row: int, kind: type[Modality]) -> Any:
    """Return the value of a modality; None for a corpus, or a row, without it."""
    if not corpus.has_modality(kind) or corpus.raw(row, column := corpus.column_with(kind)) is None:
        return None
    return corpus.value(row, column)


def _labels(corpus: Corpus, row: int) -> tuple[str, ...]:
    """Return the class names of a row, of which it may have none."""
    label = None if corpus.label is None else corpus.raw(row, corpus.label)
    every = label if isinstance(label, list | tuple) else [label]
    return tuple(str(one) for one in every if one is not None and one != "")


def _regions(
    corpus: Corpus, row: int, pixels: np.ndarray, boxes: Sequence[Any] | None, findings: Sequence[str], detect: Detector
) -> list[RegionOfInterest]:
    """Return the regions of a mask, else of boxes, else those that are detected.

    An empty mask, or an empty list of boxes, says that there is no region; a missing one says nothing. Raises
    UnreadableExample for a mask of another size than the image's.
    """
    height, width = pixels.shape[:2]
    if (mask := _given(corpus, row, Mask)) is not None:
        if mask.shape != (height, width):
            raise UnreadableExample(f"the mask is {mask.shape[1]} x {mask.shape[0]} px, the image {width} x {height}")
        return regions_of_mask(mask, [box.name for box in boxes or ()] or findings or ["region"])
    if boxes is not None:
        filled = (region_of_box(box.name, box.box, height, width) for box in boxes)
        return [region for region in filled if region is not None]
    return detect(pixels, findings or ["region"])


def _described(
    chunk: Sequence[_Loaded], written: set[int], options: TripletOptions, generators: Generators
) -> Iterator[tuple[_Loaded, Description | None, str]]:
    """Return the five fields of each image and who described it; None for a text without all of them."""
    ours = [one for one in chunk if one.row in written]
    others = [one for one in chunk if one.row not in written]
    snippets: list[list[str]] = [[] for _ in ours]
    if generators.knowledge is not None and options.num_retrieved:
        queries = [one.metadata.coarse_caption(with_findings=not options.label_questions) for one in ours]
        snippets = generators.knowledge.search(queries, options.num_retrieved)
    for one, some in zip(ours, snippets, strict=True):
        regions = one.regions if options.use_regions else None
        yield one, reformat(generators.write(Sources(one.pixels, one.metadata, regions, some))), WRITTEN
    if others and generators.captioner is not None:
        decoding = Decoding(options.max_new_tokens)
        texts: Iterable[str] = describe(generators.captioner, [one.pixels for one in others], decoding=decoding)
        for one, text in zip(others, texts, strict=True):
            yield one, reformat(text), DISTILLED


def _stored(
    corpus: Corpus, loaded: _Loaded, description: Description, provenance: str, options: TripletOptions
) -> dict[str, Any]:
    """Return a triplet in the storage of columns; the k-th region has the value k in the mask."""
    mask = np.zeros(loaded.pixels.shape[:2], np.uint8)
    for number, region in enumerate(loaded.regions, 1):
        mask[region.mask] = number
    questions: list[dict[str, Any]] = [
        question._asdict() | {"answers": question.answers or None} for question in loaded.questions
    ]
    if options.label_questions and corpus.label is not None and (labels := _labels(corpus, loaded.row)):
        questions.append(option_question(getattr(corpus.columns[corpus.label], "names", ()), ",".join(labels)))
    return {
        "key": corpus.key(loaded.row),
        "image": encoded(PILImage.fromarray(loaded.pixels)),
        "regions": [{"name": region.name, "box": list(region.box)} for region in loaded.regions],
        "mask": encoded(PILImage.fromarray(mask)),
        "description": stored_texts(str(description)),
        "provenance": provenance,
    } | ({"questions": questions or None} if corpus.has_modality(Questions) or options.label_questions else {})
