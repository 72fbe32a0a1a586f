"""A task: the capability that a method must have, the modalities that a corpus must have, its scores and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.embeddings import ItemVectors
from polymodal.evaluation.head_tail import tag_frequencies
from polymodal.evaluation.panels import Panels
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.modalities import (
    Audio,
    Conversations,
    History,
    Image,
    Images,
    Points,
    Table,
    Text,
    Threads,
    Video,
    Words,
)
from polymodal.types import Example

# What texts are compared with: the first of them that a corpus has. Methods know a column of each by this name.
ITEMS: dict[str, type] = {"points": Points, "video": Video, "image": Image, "sound": Audio}
QUERIES: dict[str, type] = {"table": Table, "sound": Audio}  # what items are retrieved by, besides texts
HEADLINES_PER_TASK = 100
WITH_TEXT = tuple((Text, modality) for modality in ITEMS.values())


@dataclass(frozen=True)
class TaskInputs:
    """A method with the corpus that it is evaluated on.

    recipe: None during training. templates: the user's prompt templates for zero-shot classification.
    class_names: what templates call a class, where that is not its name.
    """

    method: nn.Module
    processor: Any
    reader: Reader
    recipe: Any = None
    templates: tuple[str, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        return self.reader.corpus

    @cached_property
    def modalities(self) -> set[type]:
        """The modalities that the corpus has and the method takes."""
        return available_modalities(self.corpus, self.processor)

    @cached_property
    def tag_frequencies(self) -> dict[str, dict[str, int]]:
        """How often training has each value of each tag (`head_tail.tag_frequencies`), counted once for all tasks."""
        return tag_frequencies(self.corpus)

    @property
    def item(self) -> str | None:
        """The key of `ITEMS` that texts are compared with."""
        return item_of(self.modalities)

    @cached_property
    def _item_vectors(self) -> dict[str, ItemVectors]:
        return {}

    def item_vectors(self, split: str) -> ItemVectors:
        """The vectors of a split's items, computed once for all tasks."""
        assert self.item is not None
        if split not in self._item_vectors:
            vectors = ItemVectors.of(self.method, self.processor, self.reader, split, self.item)
            self._item_vectors[split] = vectors
        return self._item_vectors[split]

    @property
    def test_splits(self) -> list[str]:
        """The splits `test*`; `validation` of a corpus without, such as COCO, which keeps its test captions."""
        tests = [split for split in self.corpus.splits if split.startswith("test")]
        return tests or [split for split in self.corpus.splits if split == "validation"]

    def test_examples(self, max_examples: int) -> tuple[np.ndarray, list[Example]]:
        """Rows and examples of the first test split, at most so many, evenly spaced: what plots show."""
        return self.reader.read_split(self.test_splits[0], max_examples)

    @property
    def item_column(self) -> str:
        """The column of the corpus with what `item` names."""
        assert self.item is not None
        return self.corpus.column_with(ITEMS[self.item])

    def over_test_splits(self, score: Callable[..., list[Score]], *options: Any) -> list[Score]:
        """The scores of `score(method, processor, reader, split, *options)` on every test split."""
        arguments = (self.method, self.processor, self.reader)
        return [one for split in self.test_splits for one in score(*arguments, split, *options)]


def _always(_: TaskInputs) -> bool:
    return True


def _no_protocol(_: TaskInputs) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Task:
    """One way to evaluate a method, found as the value `task` of a file of `evaluation/tasks`.

    capability: a protocol (or a union of protocols) that the method has. requires: alternative sets of modalities, one
    of which corpus and method share; empty where there is nothing to require. condition: whatever else must hold.
    order: position among the tasks; scores are computed and shown in this order. score: all scores on the test splits.
    metrics: the end of each score's name, as a shell pattern, and what its values mean; the first that fits counts.
    headline: the scores that tables show, the most important first, as shell patterns of names without `test/`.
    forward_methods: what the task calls of the method, for which FSDP gathers parameters. validate: a few scores of the
    split `validation` during training, of the first applicable task that has it. plot: a few test examples with the
    method's answers. hint: the command that shows a run at this task. protocol: what the scores depend on besides the
    method and the data, such as prompt templates and the normalization of answers; values are JSON.
    """

    capability: Any
    order: int
    score: Callable[[TaskInputs], list[Score]]
    metrics: Mapping[str, MetricKind]
    headline: tuple[str, ...]
    forward_methods: tuple[str, ...]
    requires: tuple[tuple[type, ...], ...] = ()
    condition: Callable[[TaskInputs], bool] = _always
    validate: Callable[[TaskInputs], list[Score]] | None = None
    plot: Callable[[TaskInputs], Panels] | None = None
    hint: str = ""
    protocol: Callable[[TaskInputs], Mapping[str, Any]] = _no_protocol

    def applies_to(self, inputs: TaskInputs) -> bool:
        """Whether the method has the capability and the corpus what the task needs."""
        if not isinstance(inputs.method, self.capability):
            return False
        fits = not self.requires or any({*kinds} <= inputs.modalities for kinds in self.requires)
        return fits and self.condition(inputs)

    def described(self, scores: Iterable[Score]) -> list[Score]:
        """The scores with the units and the headline positions that the task declares."""
        return [
            replace(
                score,
                unit=(kind := self.kind_of(score.name)).unit,
                headline=self._headline_position(score.name),
                is_fraction=kind.unit == "percent" and kind.is_fraction,
            )
            for score in scores
        ]

    def kind_of(self, name: str) -> MetricKind:
        """What the values of a score of this name mean. Raises StopIteration for a metric that is not declared."""
        return next(kind for pattern, kind in self.metrics.items() if _ends_with(name, pattern))

    def _headline_position(self, name: str) -> int | None:
        split, _, rest = name.partition("/")
        parts = (rest if split in ("test", "validation") else name).split("/")
        for position, pattern in enumerate(self.headline):
            wanted = pattern.split("/")
            if len(wanted) == len(parts) and _ends_with("/".join(parts), pattern):
                return HEADLINES_PER_TASK * self.order + position
        return None


def _ends_with(name: str, pattern: str) -> bool:
    """Whether the last parts of a name fit those of a pattern."""
    pairs = zip(reversed(name.split("/")), reversed(pattern.split("/")), strict=False)
    return all(fnmatchcase(part, wanted) for part, wanted in pairs)


def available_modalities(corpus: Corpus, processor: Any) -> set[type]:
    """The modalities that the corpus has and the processor of a method takes."""
    taken = ITEMS | {"views": Images, "text": Text, "table": Table, "words": Words, "history": History}
    taken |= {"messages": Conversations, "thread": Threads}
    columns = getattr(processor, "columns", taken)
    left_out = {kind for name, kind in taken.items() if name not in columns}
    return {type(modality) for modality in corpus.columns.values()} - left_out


def item_of(modalities: set[type]) -> str | None:
    """The key of `ITEMS` that texts are compared with; None where there is none."""
    return next((name for name, kind in ITEMS.items() if kind in modalities), None)


def indexed_column(modalities: set[type]) -> str | None:
    """The name of the column whose vectors an index has: an item, else threads, else texts; None without any."""
    others: dict[str, type] = {"thread": Threads, "text": Text}
    return item_of(modalities) or next((name for name, kind in others.items() if kind in modalities), None)


def has_names(processor: Processor, what: str) -> bool:
    """Whether a processor has learned names of something, such as of `answers` or `entities`."""
    return len(getattr(processor, what, ())) > 0
