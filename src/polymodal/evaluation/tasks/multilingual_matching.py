"""Retrieval by image-text matching in each language: in those whose captions were paired with images in training, and
zero-shot in all others.

The metric is mean recall, the mean of R@1, R@5 and R@10 in both directions (Multi30K, COCO; Ni et al. 2021, section 4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.evaluation.head_tail import macro_average
from polymodal.evaluation.panels import EXAMPLES, Panels
from polymodal.evaluation.retrieval import RECALLS, chance_recall, ranks
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import WITH_TEXT, Task, TaskInputs
from polymodal.evaluation.tasks.image_text_matching import MAX_PLOTTED, matching_logits, matching_panels
from polymodal.types import Batch, Example

MAX_LANGUAGES = 30
MAX_CANDIDATES = 100  # examples of a language, all pairs of which are scored
MAX_VALIDATED = 64
PAIRED, UNPAIRED = "paired", "unpaired"


@runtime_checkable
class MatchesInLanguages(Protocol):
    """Capability: logits of pairs, of a method that says in which languages captions were paired with items."""

    paired_languages: tuple[str, ...]

    def itm_logits(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class LanguageTest:
    """One text of each example in a language. numbers: of the examples. recall: the mean recall of each example."""

    language: str
    numbers: np.ndarray
    recall: Float[np.ndarray, " examples"]
    chance: float


def languages_of(examples: Sequence[Example]) -> list[str]:
    """Return the languages of captions, the most frequent ones, in alphabetical order."""
    counts = Counter(language for example in examples for language in {caption.language for caption in example["text"]})
    return sorted(language for language, _ in counts.most_common(MAX_LANGUAGES))


def first_in(example: Example, language: str) -> str | None:
    """Return the first caption of an example in a language; None without any."""
    return next((caption.text for caption in example["text"] if caption.language == language), None)


def mean_recalls(logits: Float[Tensor, "items texts"], texts: Sequence[str]) -> tuple[np.ndarray, float]:
    """Return the mean of R@1, R@5, R@10 of both directions for each pair, and its chance level.

    logits: of as many items as texts, pair by pair. Right are all pairs with the same text.
    """
    relevant = [np.array([place for place, other in enumerate(texts) if other == text]) for text in texts]
    counts, every = np.array([len(right) for right in relevant]), torch.eye(len(texts))
    hits = [ranks(one, every, relevant)[:, None] <= np.array(RECALLS) for one in (logits.T, logits)]
    chance = float(np.mean([chance_recall(counts, len(texts), k) for k in RECALLS]))
    return np.concatenate(hits, axis=1).mean(1), chance


def language_tests(
    inputs: TaskInputs, split: str, only: Sequence[str] = (), max_candidates: int = MAX_CANDIDATES
) -> tuple[list[LanguageTest], int]:
    """Return the test of each language (`only` of these) on a split, and the number of its examples."""
    item = inputs.item
    assert item is not None
    _, examples = inputs.reader.read_split(split)
    tests = []
    for language in languages_of(examples):
        if only and language not in only:
            continue
        numbers = [number for number, example in enumerate(examples) if first_in(example, language)]
        numbers = numbers[:: -(-len(numbers) // max_candidates)]
        texts = [str(first_in(examples[number], language)) for number in numbers]
        items = [examples[number][item] for number in numbers]
        logits = matching_logits(inputs.method, inputs.processor, item, items, texts)
        tests.append(LanguageTest(language, np.array(numbers), *mean_recalls(logits, texts)))
    return tests, len(examples)


def language_scores(inputs: TaskInputs) -> list[Score]:
    """Mean recall in each language, and its averages over languages that were paired with items and over others."""
    assert isinstance(inputs.method, MatchesInLanguages)
    split, paired = inputs.test_splits[0], {*inputs.method.paired_languages}
    tests, count = language_tests(inputs, split)
    groups: dict[str, list[LanguageTest]] = {PAIRED: [], UNPAIRED: []}
    groups |= {test.language: [test] for test in tests}
    for test in tests:
        groups[PAIRED if test.language in paired else UNPAIRED].append(test)
    return [_macro(f"{split}/languages/{group}/mean_recall", some, count) for group, some in groups.items() if some]


def validation_scores(inputs: TaskInputs) -> list[Score]:
    """Mean recall in the paired languages alone, so that nothing is chosen by the others."""
    assert isinstance(inputs.method, MatchesInLanguages)
    tests, count = language_tests(inputs, "validation", inputs.method.paired_languages, MAX_VALIDATED)
    return [_macro(f"validation/languages/{PAIRED}/mean_recall", tests, count)] if tests else []


def _macro(name: str, tests: Sequence[LanguageTest], units: int) -> Score:
    """The mean of languages' mean recalls; units are examples."""
    tags = [test.language for test in tests for _ in test.numbers]
    values, unit = (np.concatenate([getattr(test, of) for test in tests]) for of in ("recall", "numbers"))
    return macro_average(name, values, tags, unit, units, float(np.mean([test.chance for test in tests])))


def plot(inputs: TaskInputs) -> Panels:
    """What captions of one example in several languages find: a paired language first, then others."""
    assert isinstance(inputs.method, MatchesInLanguages)
    rows, examples = inputs.test_examples(MAX_PLOTTED)
    paired = inputs.method.paired_languages
    number = max(range(len(examples)), key=lambda place: len({caption.language for caption in examples[place]["text"]}))
    spoken = sorted(languages_of([examples[number]]), key=lambda language: language not in paired)
    chosen = [
        spoken[place] for place in np.linspace(0, len(spoken) - 1, min(EXAMPLES, len(spoken))).round().astype(int)
    ]
    texts = [str(first_in(examples[number], language)) for language in chosen]
    titles = [f"{language}, {PAIRED if language in paired else UNPAIRED}" for language in chosen]
    description = f"One example by its captions in several languages, among {len(rows)}; green: relevant"
    return matching_panels(inputs, rows, examples, texts, titles, description)


task = Task(
    capability=MatchesInLanguages,
    requires=WITH_TEXT,
    order=21,
    score=language_scores,
    validate=validation_scores,
    plot=plot,
    metrics={"mean_recall": MetricKind()},
    headline=("languages/unpaired/mean_recall", "languages/paired/mean_recall"),
    forward_methods=("itm_logits",),
    protocol=lambda inputs: {
        "mean_recall": "mean of R@1, R@5 and R@10, text to item and item to text",
        "candidates": f"at most {MAX_CANDIDATES} examples of a language, one text each",
        "averaged_over": "languages (macro-average)",
    },
)
