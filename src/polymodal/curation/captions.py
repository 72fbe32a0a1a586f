"""Synthetic captions of images by a model, the best kept.

ULIP-2's captions of rendered views (Xue et al. 2024, section 3.1). Several captions are sampled per image and ranked by
a second model's image-text similarity (CLIP score); without a second model, the most frequent caption ranks first.
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
from polymodal.training.folder_lock import writes
from polymodal.training.run import Run, answers

CHUNK = 8  # examples per resumable chunk
BATCH = 256  # captions generated at once
MAX_NEW_TOKENS = 32  # of a caption
COLUMN = "view_captions"


@dataclass(frozen=True)
class CaptionOptions:
    """Options of captioning."""

    num_return_sequences: PositiveInt = 10
    """Number of captions sampled per image."""
    top_k: PositiveInt = 1
    """Keep the top-k captions per image, best first."""
    num_views: NonNegativeInt = 0
    """Number of views captioned per example, evenly chosen; 0: all."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of sampling."""
    max_new_tokens: PositiveInt | None = None
    """Maximum number of tokens per caption; by default 32, and with --formats 32 to 256 by the format."""
    seed: NonNegativeInt = 0
    """Random seed for sampling."""

    def __post_init__(self) -> None:
        validate_constraints(self)


@dataclass
class CaptionCounts:
    """Statistics of captioning. distinct: number of different sampled captions. unreadable: key -> reason."""

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


Captioned = tuple[int, list[ViewCaption]]  # row index, captions of its images


def check_generates_text(run: Run) -> None:
    """Raise UserError for a run that cannot generate text."""
    if not isinstance(run.model, CanGenerateText):
        raise UserError(f"The run '{run.name}' does not generate text; a method that does is mono_internvl.")


def check_embeds_pairs(run: Run) -> None:
    """Raise UserError for a run that does not embed images and texts in one space."""
    if not (isinstance(run.model, CanEmbed) and {"image", "text"} <= {*run.processor.columns}):
        raise UserError(f"The run '{run.name}' does not embed images and texts; a method that does is clip.")


def describe(run: Run, images: Sequence[np.ndarray], prompts: Sequence[str] | None = None, **options: Any) -> list[str]:
    """Return a caption of each image. prompts: one an image. options: of `generate_text`; greedy without any."""
    questions = [DESCRIBE] * len(images) if prompts is None else list(prompts)
    columns: dict[str, list[Any]] = {"image": list(images), "question": questions}
    parts = answers(run.model, run.processor, "generate_text", columns, BATCH, **options)
    return run.processor.texts([ids for part in parts for ids in part])


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
    """Yield captions of all images of these rows, without rows that cannot be read or have no caption.

    ranker: run that embeds images and texts. track: wraps the chunks to report progress. unfinished: file for resuming
    after a stop. Raises UserError for a run that cannot generate text, a ranker that cannot embed, or a corpus without
    images.
    """
    check_generates_text(run)
    if ranker is not None:
        check_embeds_pairs(ranker)
    counts = counts if counts is not None else CaptionCounts()
    column, device = _column(corpus), next(run.model.parameters()).device

    def described(number: int, chunk: np.ndarray) -> dict[str, Any]:
        chunk_counts = CaptionCounts()
        generator = generator_of(options.seed, number, device)
        captioned_rows = _captions_of(run, corpus, chunk, column, options, ranker, chunk_counts, generator)
        return {
            "captions": [(row, captions) for row, captions in captioned_rows],
            "counts": dataclasses.asdict(chunk_counts),
        }

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
    """Caption the images of a few rows together."""
    views = [
        (row, view, image) for row in rows.tolist() for view, image in _views(corpus, row, column, options, counts)
    ]
    if not views:
        return []
    images = [image for _, _, image in views]
    samples = [Counter(texts) for texts in _sample_captions(run, images, options, generator)]
    fits = _fits(ranker, images, samples) if ranker else [_frequencies(counter) for counter in samples]
    best: dict[int, list[ViewCaption]] = {}
    for (row, view, _), scores in zip(views, fits, strict=True):
        ranked = sorted(scores, key=lambda text: (-scores[text], text))[: options.top_k]
        best.setdefault(row, []).extend(ViewCaption(view, text, scores[text]) for text in ranked)
    counts.images += len(views)
    counts.distinct += sum(map(len, fits))
    for captions in best.values():
        counts.add(captions)
    return [(row, captions) for row, captions in best.items() if captions]


@writes("folder")
def write_captions(
    corpus: Corpus,
    folder: Path | str,
    training: Iterable[Captioned],
    made: Callable[[], dict[str, Any]] | None = None,
    unfinished: Path | None = None,
) -> Corpus:
    """Write a corpus of the training examples that have captions, with them, and of all other splits unchanged.

    unfinished: progress file of `captioned`, which is removed at the end. Raises UserError for a folder that is not
    empty, and when there are no captions.
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
        composed="; ".join(text for text in (corpus.about.composed, "captions are a model's own") if text),
    )
    written = write_with_column(corpus, folder, about, COLUMN, ViewCaptions(), rows(), made)
    if unfinished is not None:
        unfinished.unlink()
    return written


def _column(corpus: Corpus) -> str:
    """Return the column of several images per example, else that of one."""
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
    """Return evenly spaced view indices; all for wanted = 0, or more than there are."""
    count = min(wanted, there) or there
    return [index * there // count for index in range(count)]


def _sample_captions(
    run: Run, images: Sequence[PILImage.Image], options: CaptionOptions, generator: torch.Generator
) -> list[list[str]]:
    """Sample captions of each image; empty ones are dropped."""
    repeated = [image for image in map(np.asarray, images) for _ in range(options.num_return_sequences)]
    decoding = Decoding(options.max_new_tokens or MAX_NEW_TOKENS, options.temperature)
    texts = describe(run, repeated, decoding=decoding, generator=generator)
    starts = range(0, len(texts), options.num_return_sequences)
    return [[text for text in texts[start : start + options.num_return_sequences] if text] for start in starts]


def _frequencies(samples: Counter[str]) -> dict[str, float]:
    return {text: count / samples.total() for text, count in samples.items()}


def _fits(ranker: Run, images: list[PILImage.Image], samples: Sequence[Counter[str]]) -> list[dict[str, float]]:
    """Return the cosine similarity of each caption with its image (CLIP score)."""
    texts = [text for counter in samples for text in counter]
    if not texts:
        return [{} for _ in samples]
    vectors = ranker.embed(image=images, text=texts)
    owner = np.repeat(np.arange(len(samples)), [len(counter) for counter in samples])
    cosines = (vectors["image"][torch.from_numpy(owner)] * vectors["text"]).sum(1).tolist()
    scores: list[dict[str, float]] = [{} for _ in samples]
    for index, text, cosine in zip(owner.tolist(), texts, cosines, strict=True):
        scores[index][text] = cosine
    return scores
