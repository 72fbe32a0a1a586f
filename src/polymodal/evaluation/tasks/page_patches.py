"""Patches of page images: which field lies in each, by a linear probe, and which of them shows a word.

Both ask what pre-training has learned. Of an encoder that was fine-tuned on the same fields, the scores are of what
fine-tuning made of it, whatever it was pre-trained by.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.columns.words import first_pieces
from polymodal.data.masks import patch_range
from polymodal.evaluation.classification import balanced_accuracy, linear_probe
from polymodal.evaluation.panels import Panels, boxes_panel, text_panel, verdict_color
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Words
from polymodal.modalities.document import BOX_SCALE, Word
from polymodal.training.run import answers
from polymodal.types import Batch, Example

PAGES = 200  # of each split
MAX_PLOT_PAGES, WORDS_OF_PLOT = 2, 12


@runtime_checkable
class EncodesPages(Protocol):
    """Capability: token vectors of pages, which are text, patches, and patches of the image alone (image)."""

    def encode_page(self, batch: Batch) -> dict[str, Float[Tensor, "batch tokens width"]]: ...


class PagePatches(NamedTuple):
    """Patches that words lie in, over all pages: vectors of the image alone, class of the field, number of the page."""

    vectors: Float[np.ndarray, "patches width"]
    fields: np.ndarray
    page: np.ndarray


def touched(words: Sequence[Word], grid: int) -> np.ndarray:
    """Return, for each word, True for the patches that its box touches: words x patches, row-major."""
    inside = np.zeros((len(words), grid, grid), dtype=bool)
    for number, word in enumerate(words):
        (left, top), (right, bottom) = (one.tolist() for one in patch_range(torch.tensor(word.box), grid))
        inside[number, top : bottom + 1, left : right + 1] = True
    return inside.reshape(len(words), grid * grid)


def majority_fields(words: Sequence[Word], grid: int) -> dict[int, str]:
    """Return the most frequent field of the words that touch each patch, for patches with words."""
    inside = touched(words, grid)
    fields = np.array([word.field for word in words])
    return {
        int(patch): Counter(fields[inside[:, patch]].tolist()).most_common(1)[0][0]
        for patch in np.flatnonzero(inside.any(axis=0))
    }


def page_patch_scores(inputs: TaskInputs) -> list[Score]:
    """Score both tasks on the test splits; the probe is trained on the training split."""
    numbers = {field: number for number, field in enumerate(inputs.processor.words.fields)}
    parts: dict[str, PagePatches] = {}
    scores: list[Score] = []
    for split in inputs.corpus.splits:
        if not (split in ("train", "validation") or split.startswith("test")):
            continue
        pages = _first_windows(inputs, split)
        batches = answers(inputs.method, inputs.processor, "encode_page", pages, 32)
        vectors = [page for batch in batches for page in batch["image"].numpy()]
        grid = math.isqrt(len(vectors[0]))
        labels = [majority_fields(words, grid) for words in pages["words"]]
        chosen = [vector[list(label)] for vector, label in zip(vectors, labels, strict=True)]
        fields = np.array([numbers.get(field, 0) for label in labels for field in label.values()], dtype=np.int64)
        owner = np.repeat(np.arange(len(labels)), [len(label) for label in labels])
        parts[split] = PagePatches(np.concatenate(chosen), fields, owner)
        if split.startswith("test") and any(pages["words"]):
            scores.append(_pointing(f"{split}/word_to_patch/hit_rate", inputs, pages, batches, grid))
    if {"train", "validation"} <= {*parts} and len(np.unique(parts["train"].fields)) > 1:
        train, tuning = ((parts[split].vectors, parts[split].fields) for split in ("train", "validation"))
        probe = linear_probe(train, tuning)
        scores += [
            _by_page(f"{split}/patch_fields/accuracy", part, probe.predict(part.vectors))
            for split, part in parts.items()
            if split.startswith("test") and len(part.fields)
        ]
    return scores


def validation_scores(inputs: TaskInputs) -> list[Score]:
    """Score words alone on the split `validation`, by which the probe is tuned."""
    pages = _first_windows(inputs, "validation")
    batches = answers(inputs.method, inputs.processor, "encode_page", pages, 32)
    grid = math.isqrt(len(batches[0]["image"][0]))
    name = "validation/word_to_patch/hit_rate"
    return [_pointing(name, inputs, pages, batches, grid)] if any(pages["words"]) else []


def _first_windows(inputs: TaskInputs, split: str) -> dict[str, list[Any]]:
    """Return the image of pages, and as many of their first words as the method takes."""
    examples: list[Example] = inputs.reader.read_split(split, PAGES)[1]
    windows = [inputs.processor.words.windows(example["words"])[0] for example in examples]
    return {"words": windows, "image": [example["image"] for example in examples]}


def _pointing(name: str, inputs: TaskInputs, pages: dict[str, list[Any]], batches: list[Any], grid: int) -> Score:
    """Score words as hits whose most similar patch, by cosine, is touched by their box; chance is a random patch."""
    texts = [page for batch in batches for page in batch["text"]]
    patches = [page for batch in batches for page in batch["patches"]]
    hits, lots, counts = [], [], []
    for words, text, patch in zip(pages["words"], texts, patches, strict=True):
        if not words:
            continue
        pointed = _pointed_at(inputs, words, text, patch)
        inside = touched(words, grid)[: len(pointed)]
        hits.append(inside[np.arange(len(inside)), pointed].mean())
        lots.append(inside.mean())
        counts.append(len(inside))
    weights = np.array(counts, dtype=float)
    return Score(name, np.array(hits), float(np.average(lots, weights=weights)), weights=weights)


def _pointed_at(
    inputs: TaskInputs,
    words: Sequence[Word],
    text: Float[Tensor, "tokens width"],
    patches: Float[Tensor, "patches width"],
) -> Int[np.ndarray, " words"]:
    """Return the most similar patch, by cosine, of each word's first token."""
    first = first_pieces(inputs.processor.words([words]))[0]
    return (F.normalize(text[: len(first)][first], dim=-1) @ F.normalize(patches, dim=-1).T).argmax(1).numpy()


def _by_page(name: str, part: PagePatches, predicted: np.ndarray) -> Score:
    """Return the balanced accuracy with pages as units, since the patches of a page are alike."""
    patches = balanced_accuracy(name, predicted, part.fields)
    counts = np.bincount(part.page).astype(float)
    sums = np.bincount(part.page, weights=patches.clusters)
    return Score(name, sums[counts > 0] / counts[counts > 0], patches.chance, weights=counts[counts > 0])


def plot(inputs: TaskInputs) -> Panels:
    """Words of pages with their boxes (dotted), and the patch that each points at: green where its box touches it."""
    rows, examples = inputs.test_examples(MAX_PLOT_PAGES)
    windows = [inputs.processor.words.windows(example["words"])[0] for example in examples]
    pages = {"words": windows, "image": [example["image"] for example in examples]}
    batches = answers(inputs.method, inputs.processor, "encode_page", pages, 32)
    encoded = [(text, patch) for batch in batches for text, patch in zip(batch["text"], batch["patches"], strict=True)]
    panels = []
    for row, words, (text, patch) in zip(rows.tolist(), windows, encoded, strict=True):
        page = inputs.corpus.value(row, inputs.corpus.column_with(Image)).convert("RGB")
        pixels = torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1).float() / 255
        pointed = _pointed_at(inputs, words, text, patch) if words else np.zeros(0, dtype=np.int64)
        grid = math.isqrt(len(patch))
        inside = touched(words, grid)[: len(pointed)]
        boxes: list[tuple[Sequence[float], str, str]] = []
        lines = []
        for number in np.linspace(0, max(len(pointed) - 1, 0), min(len(pointed), WORDS_OF_PLOT)).astype(int).tolist():
            y, x = divmod(int(pointed[number]), grid)
            color = verdict_color(bool(inside[number, pointed[number]]))
            boxes.append(([edge / BOX_SCALE for edge in words[number].box], color, ":"))
            boxes.append(([x / grid, y / grid, (x + 1) / grid, (y + 1) / grid], color, "-"))
            lines.append((words[number].text, color))
        hits = inside[np.arange(len(inside)), pointed].mean() if len(inside) else 0.0
        panels.append([boxes_panel(pixels, boxes, f"{hits:.0%} of all words"), text_panel(lines)])
    return Panels(panels, "Words (dotted boxes) and the patches that they point at", (2.6, 1.2), 2.8)


task = Task(
    capability=EncodesPages,
    requires=((Words, Image),),
    order=115,
    score=page_patch_scores,
    validate=validation_scores,
    plot=plot,
    metrics={"accuracy": MetricKind(), "hit_rate": MetricKind()},
    headline=("patch_fields/accuracy", "word_to_patch/hit_rate"),
    forward_methods=("encode_page",),
)
