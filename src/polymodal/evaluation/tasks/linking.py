"""Record linkage by images and texts of records: links to an index of exemplars, and clusters.

Records of a class, the corpus's label, are the same thing in several surface forms. String similarity of the texts
stands beside the method, which is also given images and texts alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.spatial.distance import squareform
from torch import Tensor

from polymodal.evaluation.linking import INDEXED, LinkedRecords, Links, Tuned, linking_scores, top_1
from polymodal.evaluation.panels import EXAMPLES, TOP, Panels, clipped, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.string_similarity import SIMILARITIES, StringLinker
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text
from polymodal.training.run import embed

MAX_RECORDS = 3000  # of a split: single linkage needs the distances of all pairs


@runtime_checkable
class CanPool(Protocol):
    """Capability: one L2-normalized vector of a record, pooled from those of its image and text.

    pooling_weights: of the image, that may be chosen; the first is that of training.
    """

    def embed(self, batch: Any) -> dict[str, Tensor]: ...

    def pool(self, image: Tensor, text: Tensor, weight: float) -> Tensor: ...

    def pooling_weights(self) -> Sequence[float]: ...


class VectorLinker:
    """Links records by their pooled vectors. records: image and text embeddings. weights: of images."""

    def __init__(self, method: CanPool, weights: Sequence[float]):
        self.method = method
        self.weights = tuple(weights)

    def similarity(
        self, records: Mapping[str, Tensor], weight: float, rows: np.ndarray, columns: np.ndarray
    ) -> np.ndarray:
        vectors = self._pooled(records, weight)
        return vectors[rows] @ vectors[columns].T

    def distances(self, records: Mapping[str, Tensor], weight: float) -> np.ndarray:
        vectors = self._pooled(records, weight)
        return squareform(np.nan_to_num(1 - vectors @ vectors.T, nan=2.0).clip(0.0), checks=False)

    def _pooled(self, records: Mapping[str, Tensor], weight: float) -> np.ndarray:
        return self.method.pool(records["image"].double(), records["text"].double(), weight).numpy()


def records_of(inputs: TaskInputs, split: str) -> tuple[np.ndarray, LinkedRecords, LinkedRecords] | None:
    """Rows of a split that have a label, and their records: with vectors, and with texts; None where no record has
    an exemplar of its class beside one of another."""
    corpus, label = inputs.corpus, inputs.corpus.label
    assert label is not None
    rows, examples = inputs.reader.read_split(split, MAX_RECORDS)
    names = np.array(corpus.raw_values(rows, label), dtype=object)
    labelled = [place for place, name in enumerate(names) if name is not None]
    if not 1 < len({names[place] for place in labelled}) < len(labelled):
        return None
    images, texts = ([examples[place][name] for place in labelled] for name in ("image", "text"))
    captions = [captions[0].text for captions in texts]
    classes = names[labelled].astype(str)
    texts_of = LinkedRecords.of(captions, classes)
    if not texts_of.matched.any():
        return None
    vectors = embed(inputs.method, inputs.processor, image=images, text=captions)
    return rows[labelled], dataclasses.replace(texts_of, values=vectors), texts_of


def scores_of(inputs: TaskInputs) -> list[Score]:
    """Scores of every test split, tuned on the validation split of the same kind (`validation_noisy` for `test_noisy`),
    else on `validation`; without one, top-1 alone with the weight of training."""
    method: Any = inputs.method
    weights = method.pooling_weights()
    linkers: dict[str, Any] = {"": VectorLinker(method, weights)}
    if len(weights) > 1:
        linkers |= {"/image": VectorLinker(method, (1.0,)), "/text": VectorLinker(method, (0.0,))}
    linkers |= {f"/{name}": StringLinker(name) for name in SIMILARITIES}
    tuned: dict[str, dict[str, Tuned]] = {}
    scores = []
    for split in [split for split in inputs.test_splits if split.startswith("test")]:
        if (test := records_of(inputs, split)) is None:
            continue
        validation = split.replace("test", "validation", 1)
        if validation not in inputs.corpus.splits:
            validation = "validation"
        if validation not in tuned:
            tuned[validation] = _tuned(inputs, validation, linkers)
        for name, linker in linkers.items():
            records = test[2] if isinstance(linker, StringLinker) else test[1]
            if name in tuned[validation]:
                scores += linking_scores(f"{split}/linking{name}", linker, records, tuned[validation][name])
            else:
                scores.append(top_1(f"{split}/linking{name}", Links.of(linker, records, linker.weights[0]), records))
    return scores


def _tuned(inputs: TaskInputs, split: str, linkers: Mapping[str, Any]) -> dict[str, Tuned]:
    there = len(inputs.corpus.splits.get(split, ()))
    if not there or (validation := records_of(inputs, split)) is None:
        return {}
    return {
        name: Tuned.on(linker, validation[2] if isinstance(linker, StringLinker) else validation[1])
        for name, linker in linkers.items()
    }


def validate(inputs: TaskInputs) -> list[Score]:
    """Top-1 of the validation split, with the weight of training."""
    if (validation := records_of(inputs, "validation")) is None:
        return []
    method: Any = inputs.method
    weight = method.pooling_weights()[0]
    return [
        top_1("validation/linking", Links.of(VectorLinker(method, (weight,)), validation[1], weight), validation[1])
    ]


def plot(inputs: TaskInputs) -> Panels:
    """Test records with the most similar exemplars, and their texts."""
    split = inputs.test_splits[0]
    test = records_of(inputs, split)
    if test is None:
        return Panels([[text_panel(["No two test records have one label."])]])
    rows, records, texts = test
    method: Any = inputs.method
    weight = method.pooling_weights()[0]
    queries = records.queries[records.matched]
    chosen = queries[np.linspace(0, len(queries) - 1, min(EXAMPLES, len(queries))).round().astype(int)]
    linker = VectorLinker(method, (weight,))
    similarity = torch.from_numpy(linker.similarity(records.values, weight, chosen, records.exemplars))
    nearest = similarity.topk(min(TOP, len(records.exemplars))).indices.numpy()
    column = inputs.corpus.column_with(Image)

    def panel(record: int, correct: bool | None = None) -> Any:
        title = clipped(texts.values[record], 17)
        return value_panel(inputs.corpus, int(rows[record]), column, title, correct)

    lines = [
        [
            panel(query),
            *(panel(one, bool(records.labels[one] == records.labels[query])) for one in records.exemplars[of].tolist()),
        ]
        for query, of in zip(chosen.tolist(), nearest, strict=True)
    ]
    return Panels(lines, f"Records (left) and their nearest of {len(records.exemplars)} exemplars; green: same class")


task = Task(
    capability=CanPool,
    requires=((Image, Text),),
    condition=lambda inputs: inputs.corpus.label is not None,
    order=6,
    score=scores_of,
    validate=validate,
    plot=plot,
    metrics={
        "top-1": MetricKind(),
        "accuracy_with_no_match": MetricKind(),
        "ARI": MetricKind(is_fraction=False),
        "largest_cluster": MetricKind(higher_is_better=False),
    },
    headline=("linking/top-1", "linking/accuracy_with_no_match", "linking/ARI", "linking/*/top-1"),
    forward_methods=("embed",),
    protocol=lambda inputs: {"indexed classes": INDEXED, "weights": list(inputs.method.pooling_weights())},  # type: ignore[operator]
)
