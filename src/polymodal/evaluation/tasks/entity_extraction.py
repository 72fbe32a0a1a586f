"""Entity extraction from forms: fields of words, scored by whole entities as in FUNSD (Jaume et al. 2019)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.panels import Panel, Panels, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score, ratio
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Words
from polymodal.modalities.document import BOX_SCALE, OTHER, Word
from polymodal.training.run import answers
from polymodal.types import Batch, Example

VALIDATION_PAGES = 150  # since long pages take longer than many training steps
MAX_PLOT_PAGES = 2
NO_FIELD = ""  # of a word whose logits are NaN: never correct
Entity = tuple[int, int, str]  # the first word, the one after the last, and the field


@runtime_checkable
class CanClassifyTokens(Protocol):
    """Capability: logits of the fields of all words of a batch of pages, page by page: (words, fields).

    has_learned_fields: whether it was trained to; a method that was pre-trained alone is not scored.
    """

    has_learned_fields: bool

    def classify_tokens(self, batch: Batch) -> Tensor: ...


def entities(words: Sequence[Word], fields: Sequence[str]) -> set[Entity]:
    """Runs of words of one segment and one field; words of no field are part of none."""
    spans, place = set(), 0
    for (_, field), run in itertools.groupby(zip((word.segment for word in words), fields, strict=True)):
        length = len(list(run))
        if field != OTHER:
            spans.add((place, place + length, field))
        place += length
    return spans


def predict_fields(
    method: nn.Module, processor: Processor, examples: Sequence[Example]
) -> list[tuple[list[Word], list[str]]]:
    """The words of each page, and the field that the method takes each for; long pages part by part."""
    column: Any = processor.columns["words"]
    parts = [(number, part) for number, one in enumerate(examples) for part in column.windows(one["words"])]
    columns = {"words": [part for _, part in parts], "image": [examples[number]["image"] for number, _ in parts]}
    likely = predicted_classes(torch.cat(answers(method, processor, "classify_tokens", columns, 64)).numpy()).tolist()
    fields = iter([column.fields[number] if number >= 0 else NO_FIELD for number in likely])
    return [(one["words"], [next(fields) for _ in one["words"]]) for one in examples]


def field_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, max_pages: int | None = None
) -> list[Score]:
    """F1 of entities and accuracy of words, on a split or on at most so many pages of it.

    An entity is correct when all of its words, and no others of its segment, have its field; F1 is the micro average
    over all pages. Chance: each segment has the fields of another one of the split, sampled at random.
    """
    _, examples = reader.read_split(split, max_pages)
    pages = predict_fields(method, processor, examples)
    truth = [[word.field for word in words] for words, _ in pages]
    counts_of_fields = [_f1(words, right, guess) for (words, guess), right in zip(pages, truth, strict=True)]
    by_chance = [
        _f1(words, right, guess) for (words, _), right, guess in zip(pages, truth, _chance(pages), strict=True)
    ]
    right = [np.equal(labels, guess) for labels, (_, guess) in zip(truth, pages, strict=True)]
    counts = Counter(field for labels in truth for field in labels)
    usual = counts.most_common(1)[0][1] / counts.total()
    return [
        _weighted(f"{split}/fields/entity_f1", counts_of_fields, _weighted("", by_chance).value),
        _weighted(f"{split}/fields/word_accuracy", [(int(one.sum()), len(one)) for one in right], usual),
    ]


def _weighted(name: str, counts: Sequence[tuple[int, int]], chance: float | None = None) -> Score:
    """counts: of each page, what is right and out of how much.

    A page without any has no weight, and keeps its place: which these are depends on what was predicted.
    """
    right, of = np.array(counts, dtype=float).reshape(-1, 2).T
    return Score(name, ratio(right, of), chance, weights=of)


def _f1(words: Sequence[Word], truth: Sequence[str], guess: Sequence[str]) -> tuple[int, int]:
    """Twice the fields in common, and the fields of both."""
    ours, theirs = entities(words, guess), entities(words, truth)
    return 2 * len(ours & theirs), len(ours) + len(theirs)


def _chance(pages: Sequence[tuple[list[Word], list[str]]]) -> list[list[str]]:
    """For each word, the field of the first word of a segment sampled at random."""
    segments = [[list(run) for _, run in itertools.groupby(words, key=lambda word: word.segment)] for words, _ in pages]
    firsts = [segment[0].field for page in segments for segment in page]
    drawn = iter(np.random.default_rng(0).permutation(firsts).tolist())
    return [[field for segment in page for field in [next(drawn)] * len(segment)] for page in segments]


def plot(inputs: TaskInputs) -> Panels:
    """Pages, their labelled fields, and the predicted ones; a legend of the fields."""
    rows, examples = inputs.test_examples(MAX_PLOT_PAGES)
    pages = predict_fields(inputs.method, inputs.processor, examples)
    image = inputs.corpus.column_with(Image)
    panels = []
    for row, (words, fields) in zip(rows.tolist(), pages, strict=True):
        used = sorted({*fields, *(word.field for word in words)} - {OTHER, NO_FIELD})
        right = np.mean([word.field == field for word, field in zip(words, fields, strict=True)])
        guesses = [word._replace(field=field) for word, field in zip(words, fields, strict=True)]
        legend = [(field, f"C{number % 10}") for number, field in enumerate(used)]
        page = inputs.corpus.value(row, image)
        titled = ((words, "labels"), (guesses, f"predictions: {right:.0%} correct"))
        maps = [_fields_panel(some, used, title, page.height / page.width) for some, title in titled]
        panels.append([value_panel(inputs.corpus, row, image), *maps, text_panel(legend)])
    return Panels(panels, "Fields of words", (1.5, 1.5, 1.5, 1.0), 1.9)


def _fields_panel(words: Sequence[Word], names: Sequence[str], title: str, aspect: float) -> Panel:
    """The boxes of words on the page, in the color of the field; gray where there is none. aspect: height by width."""

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for word in words:
            left, top, right, bottom = word.box
            color = f"C{names.index(word.field) % 10}" if word.field in names else "#d0d0d0"
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor=color, linewidth=0))
        axes.set(xlim=(0, BOX_SCALE), ylim=(BOX_SCALE, 0), aspect=aspect)

    return Panel(draw, title)


task = Task(
    capability=CanClassifyTokens,
    requires=((Words,),),
    condition=lambda inputs: bool(inputs.method.has_learned_fields),
    order=110,
    score=lambda inputs: inputs.over_test_splits(field_scores),
    validate=lambda inputs: field_scores(
        inputs.method, inputs.processor, inputs.reader, "validation", VALIDATION_PAGES
    ),
    plot=plot,
    metrics={"entity_f1": MetricKind(), "word_accuracy": MetricKind()},
    headline=("fields/entity_f1", "fields/word_accuracy"),
    forward_methods=("classify_tokens",),
    hint="extract RUN",
)
