"""Captions of images by a model, the best kept: what ULIP-2 makes of rendered views (Xue et al. 2024, section 3.1).

Of each image several captions are drawn. A second model that compares images with texts says which fit; without
one, the caption that was drawn most often is the best.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from polymodal.constraints import NonNegativeInt, PositiveFloat, PositiveInt, validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import write_with_column
from polymodal.curation.resumable import generator_of, merge_counts, run_resumably
from polymodal.data.conversation import DESCRIBE
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation.capabilities import CanEmbed, CanGenerateText
from polymodal.layers.decoding import Decoding
from polymodal.modalities import Image, Images, ViewCaptions
from polymodal.modalities.image import to_rgb
from polymodal.modalities.view_caption import ViewCaption
from polymodal.training.feature_cache import weights_key
from polymodal.training.run import Run, answers

CHUNK = 8  # examples that are described together
BATCH = 256  # captions that are written at once
COLUMN = "view_captions"


@dataclass(frozen=True)
class CaptionOptions:
    """How captions are made."""

    num_return_sequences: PositiveInt = 10
    """Captions that are drawn of each image."""
    top_k: PositiveInt = 1
    """Captions of an image that are kept, the best first."""
    num_views: NonNegativeInt = 0
    """Images of an example that are described, evenly chosen; 0 is all."""
    temperature: PositiveFloat = 1.0
    """Of the distribution that captions are drawn from."""
    max_new_tokens: PositiveInt = 32
    """Most tokens of a caption."""
    seed: NonNegativeInt = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclass
class CaptionCounts:
    """What came out. distinct: different captions that were drawn of the images. unreadable: key -> why."""

    images: int = 0
    distinct: int = 0
    kept: int = 0
    words: int = 0
    fit: float = 0.0
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, captions: Sequence[ViewCaption]) -> None:
        self.kept += len(captions)
        self.words += sum(len(caption.text.split()) for caption in captions)
        self.fit += sum(caption.fit for caption in captions)


Captioned = tuple[int, list[ViewCaption]]  # a row number, and the captions of its images


def captioned(
    run: Run,
    corpus: Corpus,
    rows: np.ndarray,
    options: CaptionOptions,
    ranker: Run | None = None,
    counts: CaptionCounts | None = None,
    track: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter,
    unfinished: Path | None = None,
) -> Iterator[Captioned]:
    """Captions of all images of these rows; rows that cannot be read, or of which nothing was written, are left out.

    ranker: a run that embeds images and texts. track: shows how far it is. unfinished: a file from which the same
    work goes on after a stop. Raises UserError for a run that cannot write, a ranker that cannot embed, or a corpus
    without images.
    """
    if not isinstance(run.model, CanGenerateText):
        raise UserError(f"The run '{run.name}' does not write; a method that does is mono_internvl.")
    if ranker is not None and not isinstance(ranker.model, CanEmbed):
        raise UserError(f"The run '{ranker.name}' does not compare images with texts; a method that does is clip.")
    counts = counts if counts is not None else CaptionCounts()
    column, device = _column(corpus), next(run.model.parameters()).device

    def described(number: int, chunk: np.ndarray) -> dict[str, Any]:
        own = CaptionCounts()
        generator = generator_of(options.seed, number, device)
        found = _captions_of(run, corpus, chunk, column, options, ranker, own, generator)
        return {"captions": [(row, captions) for row, captions in found], "counts": dataclasses.asdict(own)}

    def asked() -> dict[str, Any]:
        return {
            "run": weights_key(run.model),
            "ranker": weights_key(ranker.model) if ranker else None,
            "corpus": dict(corpus.choices),
            "rows": len(rows),
            "options": dataclasses.asdict(options),
        }

    chunks = track([rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)])
    for made in run_resumably(chunks, described, unfinished, asked):
        merge_counts(counts, CaptionCounts(**made["counts"]))
        yield from ((row, [ViewCaption(*caption) for caption in captions]) for row, captions in made["captions"])


def _captions_of(
    run: Run,
    corpus: Corpus,
    rows: np.ndarray,
    column: str,
    options: CaptionOptions,
    ranker: Run | None,
    counts: CaptionCounts,
    generator: torch.Generator,
) -> list[Captioned]:
    """Those of a few rows, which are described together."""
    seen = [(row, view, image) for row in rows.tolist() for view, image in _views(corpus, row, column, options, counts)]
    if not seen:
        return []
    images = [image for _, _, image in seen]
    drawn = [Counter(texts) for texts in _sample_captions(run, images, options, generator)]
    fits = _fits(ranker, images, drawn) if ranker else [_frequencies(counter) for counter in drawn]
    best: dict[int, list[ViewCaption]] = {}
    for (row, view, _), found in zip(seen, fits, strict=True):
        ranked = sorted(found, key=lambda text: (-found[text], text))[: options.top_k]
        best.setdefault(row, []).extend(ViewCaption(view, text, found[text]) for text in ranked)
    counts.images += len(seen)
    counts.distinct += sum(map(len, fits))
    for captions in best.values():
        counts.add(captions)
    return [(row, captions) for row, captions in best.items() if captions]


def write_captions(
    corpus: Corpus,
    folder: Path | str,
    training: Iterable[Captioned],
    made: Callable[[], dict[str, Any]] | None = None,
    unfinished: Path | None = None,
) -> Corpus:
    """A corpus of the training examples that have captions, with them, and of all other splits as they are.

    unfinished: the file of `captioned`, which goes when it is not needed any more.
    Raises UserError for a folder that is not empty, and when no caption came out.
    """

    def rows() -> Iterator[tuple[int, list[dict[str, Any]]]]:
        count = 0
        for count, (row, captions) in enumerate(training, 1):  # noqa: B007
            yield row, [caption._asdict() for caption in captions]
        if not count:
            if unfinished is not None:
                unfinished.unlink()
            raise UserError(f"No caption came out of the training images of '{corpus.name}'.")

    about = dataclasses.replace(
        corpus.about,
        name=f"{corpus.name}-captioned",
        description=f"{corpus.about.description}; with captions that a model wrote",
        composed="; ".join(said for said in (corpus.about.composed, "captions are a model's own") if said),
    )
    written = write_with_column(corpus, folder, about, COLUMN, ViewCaptions(), rows(), made)
    if unfinished is not None:
        unfinished.unlink()
    return written


def _column(corpus: Corpus) -> str:
    """The column of several images an example, or else that of one."""
    return corpus.column_with(Images if corpus.has_modality(Images) else Image)


def _views(
    corpus: Corpus, row: int, column: str, options: CaptionOptions, counts: CaptionCounts
) -> list[tuple[int, PILImage.Image]]:
    try:
        value = corpus.value(row, column)
        images = [to_rgb(image) for image in (value if isinstance(value, list) else [value])]
    except UnreadableExample as reason:
        counts.unreadable[corpus.key(row)] = str(reason)
        return []
    return [(view, images[view]) for view in some_views(len(images), options.num_views)]


def some_views(there: int, wanted: int) -> list[int]:
    """Numbers of evenly chosen images of an example; all where 0, or more than there are, are wanted."""
    count = min(wanted, there) or there
    return [number * there // count for number in range(count)]


def _sample_captions(
    run: Run, images: Sequence[PILImage.Image], options: CaptionOptions, generator: torch.Generator
) -> list[list[str]]:
    """Captions of each image; what is empty is left out."""
    shown = [image for image in map(np.asarray, images) for _ in range(options.num_return_sequences)]
    columns: dict[str, list[Any]] = {"image": shown, "question": [DESCRIBE] * len(shown)}
    decoding = Decoding(options.max_new_tokens, options.temperature)
    parts = answers(run.model, run.processor, "generate_text", columns, BATCH, decoding=decoding, generator=generator)
    texts = run.processor.texts([ids for part in parts for ids in part])  # type: ignore[attr-defined]
    starts = range(0, len(texts), options.num_return_sequences)
    return [[text for text in texts[start : start + options.num_return_sequences] if text] for start in starts]


def _frequencies(drawn: Counter[str]) -> dict[str, float]:
    return {text: count / drawn.total() for text, count in drawn.items()}


def _fits(ranker: Run, images: list[PILImage.Image], drawn: Sequence[Counter[str]]) -> list[dict[str, float]]:
    """The cosine of each caption with its image."""
    texts = [text for counter in drawn for text in counter]
    if not texts:
        return [{} for _ in drawn]
    vectors = ranker.embed(image=images, text=texts)
    owner = np.repeat(np.arange(len(drawn)), [len(counter) for counter in drawn])
    cosines = (vectors["image"][torch.from_numpy(owner)] * vectors["text"]).sum(1).tolist()
    found: list[dict[str, float]] = [{} for _ in drawn]
    for number, text, cosine in zip(owner.tolist(), texts, cosines, strict=True):
        found[number][text] = cosine
    return found
