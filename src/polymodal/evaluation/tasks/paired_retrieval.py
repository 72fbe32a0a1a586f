"""Retrieval between the columns of an example without texts: of its image by its table row, or of its clip by sound."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from torch import nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.panels import EXAMPLES, MAX_CANDIDATES, Panels, retrieval_panels, value_panel
from polymodal.evaluation.retrieval import METRICS, ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import ITEMS, QUERIES, Task, TaskInputs
from polymodal.modalities import Table, Text
from polymodal.modalities.table import TableRow
from polymodal.training.run import embed

PAIRS = (("table", "image"), ("sound", "video"))


def paired_items(
    method: nn.Module, processor: Processor, reader: Reader, split: str, query: str, item: str
) -> list[Score]:
    """Retrieval of each example's item by its query, such as its image by its table row.

    Relevant are the items of all examples with an equal query, such as the same sound.
    """
    rows, examples = reader.read_split(split)
    vectors = embed(method, processor, 256, **{name: [example[name] for example in examples] for name in (query, item)})
    having: dict[Any, list[int]] = defaultdict(list)
    queries = [_identity(example[query], number) for number, example in enumerate(examples)]
    for place, value in enumerate(queries):
        having[value].append(place)
    relevant = [np.array(having[value]) for value in queries]
    best_ranks = ranks(vectors[query], vectors[item], relevant)
    return retrieval_scores(f"{split}/{query}_to_{item}", best_ranks, relevant, len(rows), np.arange(len(rows)))


def _identity(query: Any, number: int) -> Any:
    """What equal queries have in common; of a kind that is not known here, the number of the example."""
    if isinstance(query, np.ndarray):
        return query.tobytes()
    if isinstance(query, TableRow):
        return query.numbers.tobytes(), query.categories.tobytes()
    return number


def _scores(inputs: TaskInputs) -> list[Score]:
    pairs = [pair for pair in PAIRS if {QUERIES[pair[0]], ITEMS[pair[1]]} <= inputs.modalities]
    return [score for pair in pairs for score in inputs.over_test_splits(paired_items, *pair)]


def _validate(inputs: TaskInputs) -> list[Score]:
    if Table not in inputs.modalities or Text in inputs.modalities:
        return []
    return paired_items(inputs.method, inputs.processor, inputs.reader, "validation", "table", "image")


def plot(inputs: TaskInputs) -> Panels:
    """Queries with the most similar items, of the first pair of columns that the corpus has."""
    query, item = next(pair for pair in PAIRS if {QUERIES[pair[0]], ITEMS[pair[1]]} <= inputs.modalities)
    rows, examples = inputs.test_examples(MAX_CANDIDATES)
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int).tolist()
    columns = {query: [examples[number][query] for number in chosen], item: [example[item] for example in examples]}
    vectors = embed(inputs.method, inputs.processor, 256, **columns)
    queries = [_identity(example[query], number) for number, example in enumerate(examples)]
    of_query, of_item = (inputs.corpus.column_with(kind) for kind in (QUERIES[query], ITEMS[item]))
    return retrieval_panels(
        [value_panel(inputs.corpus, int(rows[number]), of_query, "query") for number in chosen],
        vectors[query] @ vectors[item].T,
        [np.flatnonzero([other == queries[number] for other in queries]) for number in chosen],
        lambda number, title, right: value_panel(inputs.corpus, int(rows[number]), of_item, title, right),
        f"Retrieval of {item} by {query} among {len(rows)} test examples; green: relevant",
    )


task = Task(
    capability=CanEmbed,
    requires=tuple((QUERIES[query], ITEMS[item]) for query, item in PAIRS),
    order=70,
    score=_scores,
    validate=_validate,
    plot=plot,
    metrics=METRICS,
    headline=("*/R@10", "*/R@1", "*/MRR"),
    forward_methods=("embed",),
    hint="embed RUN",
)
