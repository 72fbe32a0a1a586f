"""Classification and reconstruction when cells of a table are missing (protocols of TIP, Du et al. 2024, section 4.3).

Cells are taken away from training, validation and test rows alike before a linear probe is fitted on frozen features; a
method that classifies by itself was trained already, so that for it only test rows lose cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.evaluation.classification import area_under_curve, balanced_accuracy, linear_probe
from polymodal.evaluation.statistics import Score
from polymodal.modalities.table import TableRow
from polymodal.training.run import Run, answers
from polymodal.types import CanClassify, Example, HasFeatures

MissingProtocol = Literal["random_values", "random_columns", "most_important", "least_important"]
PROTOCOLS: tuple[MissingProtocol, ...] = ("random_values", "random_columns", "most_important", "least_important")
RATES = (0.3, 0.5, 0.7, 0.9)  # of missing cells, beside none


@dataclass(frozen=True)
class Labelled:
    """A split's readable examples and their labels."""

    examples: list[Example]
    labels: Int[np.ndarray, " examples"]

    @classmethod
    def of(cls, reader: Reader, split: str, label: str) -> Labelled:
        rows, examples = reader.read_split(split)
        return cls(examples, np.array([reader.corpus.value(row, label) for row in rows]))

    def without(self, gone: Bool[np.ndarray, "examples columns"]) -> Labelled:
        """The same with further cells of the table missing; numbers come first."""
        numeric = len(self.examples[0]["table"].numbers)
        return Labelled(
            [
                example | {"table": _hidden(example["table"], cells[:numeric], cells[numeric:])}
                for example, cells in zip(self.examples, gone, strict=True)
            ],
            self.labels,
        )


def _hidden(row: TableRow, numbers: np.ndarray, categories: np.ndarray) -> TableRow:
    return TableRow(np.where(numbers, np.nan, row.numbers).astype(np.float32), np.where(categories, -1, row.categories))


def missing_cells(
    protocol: MissingProtocol, rate: float, rows: int, important: Sequence[int], rng: np.random.Generator
) -> Bool[np.ndarray, "rows columns"]:
    """Which cells are missing. important: the columns, most important first."""
    columns = len(important)
    gone = np.zeros((rows, columns), dtype=bool)
    count = round(rate * columns)
    if protocol == "random_values":
        gone.reshape(-1)[rng.permutation(gone.size)[: round(rate * gone.size)]] = True
    elif protocol == "random_columns":
        gone[:, rng.permutation(columns)[:count]] = True
    else:
        order = important if protocol == "most_important" else important[::-1]
        gone[:, list(order[:count])] = True
    return gone


def columns_by_importance(train: Labelled) -> list[int]:
    """Columns of the table by how much a random forest uses them, most first."""
    from sklearn.ensemble import RandomForestClassifier

    cells = np.stack([np.concatenate([e["table"].numbers, e["table"].categories]) for e in train.examples])
    forest = RandomForestClassifier(random_state=0).fit(cells, train.labels)
    return np.argsort(-forest.feature_importances_, kind="stable").tolist()


def classification_scores(run: Run, corpus: Corpus, reader: Reader) -> list[Score]:
    """By linear probes of the method's features, their probabilities averaged, and by its own classes if it has any.

    With a table among the columns, also for every protocol and rate of missing cells, and over all rates: the area
    under the curve of the figure against the rate, divided by the largest rate.
    """
    label = corpus.label
    assert label is not None
    parts = {split: Labelled.of(reader, split, label) for split in corpus.splits}
    with_table = "train" in parts and "table" in parts["train"].examples[0]
    important = columns_by_importance(parts["train"]) if with_table else []
    scores = _scores(run, parts, label, "")
    for protocol in PROTOCOLS if with_table else ():
        curves: dict[str, list[Score]] = {score.name: [score] for score in scores}
        for rate in RATES:
            rng = [np.random.default_rng(round(100 * rate)) for _ in parts]  # the same columns in all splits
            lacking = {
                split: part.without(missing_cells(protocol, rate, len(part.labels), important, one))
                for (split, part), one in zip(parts.items(), rng, strict=True)
            }
            condition = f"{protocol}_{round(100 * rate)}%/"
            for score in _scores(run, lacking, label, condition):
                scores.append(score)
                curves[score.name.replace(condition, "")].append(score)
        for name, curve in curves.items():
            if len(curve) > 1:
                task, _, metric = name.rpartition("/")
                scores.append(
                    Score(f"{task}/{protocol}/{metric.lower()}_vs_missing_rate", _area(curve), curve[0].chance)
                )
    return scores


def _area(curve: list[Score]) -> np.ndarray:
    return np.trapezoid([score.clusters for score in curve], (0.0, *RATES), axis=0) / RATES[-1]


def _scores(run: Run, parts: Mapping[str, Labelled], label: str, condition: str) -> list[Score]:
    tests = {split: part for split, part in parts.items() if split.startswith("test")}
    scores: list[Score] = []

    def add(split: str, task: str, likely: np.ndarray) -> None:
        labels = tests[split].labels
        scores.append(balanced_accuracy(f"{split}/{task}/{condition}accuracy", likely.argmax(1), labels))
        scores.append(area_under_curve(f"{split}/{task}/{condition}AUC", likely, labels))

    if isinstance(run.model, CanClassify):
        for split, part in tests.items():
            logits = answers(run.model, run.processor, "classify", columns_of(part.examples))
            add(split, f"classify_{label}", torch.cat(logits).numpy())
    if isinstance(run.model, HasFeatures) and {"train", "validation"} <= set(parts):
        vectors = {split: _features(run, part.examples) for split, part in parts.items()}
        classes = 1 + max(part.labels.max() for part in parts.values())
        likely = {split: np.zeros((len(part.labels), classes)) for split, part in tests.items()}
        for name in vectors["train"]:
            train, tuning = ((vectors[split][name], parts[split].labels) for split in ("train", "validation"))
            probe = linear_probe(train, tuning)
            for split in tests:
                own = np.zeros_like(likely[split])
                own[:, probe.classes_] = probe.predict_proba(vectors[split][name])
                likely[split] += own
                if not condition:
                    add(split, f"linear_probe_{label}/{name}", own)
        for split in tests:
            add(split, f"linear_probe_{label}", likely[split])
    return scores


def columns_of(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """What a method may see of examples: all columns but the label."""
    return {name: [example[name] for example in examples] for name in examples[0] if name != "label"}


def _features(run: Run, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    batches = answers(run.model, run.processor, "features", columns_of(examples))
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0]}


def fill_scores(run: Run, reader: Reader, split: str, rate: float = 0.5) -> list[Score]:
    """How well hidden cells of the table are filled in, with the example's own image and with another example's.

    Errors of numbers are squared, in variances of the training rows; chance guesses their mean. Categories: accuracy;
    chance guesses the most frequent value.
    """
    _, examples = reader.read_all(reader.corpus.rows(split))
    rows = [example["table"] for example in examples]
    columns = sum(map(len, rows[0]))
    gone = missing_cells("random_values", rate, len(rows), range(columns), np.random.default_rng(0))
    truth = run.processor(table=rows)["table"]
    wanted = torch.from_numpy(gone) & ~truth.missing
    lacking = Labelled(examples, np.zeros(len(examples), np.int64)).without(gone).examples
    images = [example["image"] for example in examples]
    scores = []
    for name, shown in (("imputation", images), ("imputation_with_shuffled_image", [*images[1:], images[0]])):
        given = [example | {"image": image} for example, image in zip(lacking, shown, strict=True)]
        batches = answers(run.model, run.processor, "fill_cells", columns_of(given))
        numbers = torch.cat([batch[0] for batch in batches])
        error = _by_example((numbers - truth.numbers).square(), wanted[:, : numbers.shape[1]])
        if len(error):
            guess = _by_example(truth.numbers.square(), wanted[:, : numbers.shape[1]])
            scores.append(Score(f"{split}/{name}/mse", error, float(guess.mean()), higher_is_better=False))
        places = torch.cat([_places(batch[1], len(batch[0])) for batch in batches])
        right = _by_example((places == truth.categories).float(), wanted[:, numbers.shape[1] :])
        if len(right):
            usual = truth.categories == truth.categories.mode(dim=0).values
            chance = _by_example(usual.float(), wanted[:, numbers.shape[1] :])
            scores.append(Score(f"{split}/{name}/accuracy", right, float(chance.mean())))
    return scores


def _places(logits: list[Tensor], rows: int) -> Int[Tensor, "rows categorical"]:
    return torch.stack([column.argmax(1) for column in logits], dim=1) if logits else torch.empty(rows, 0).long()


def _by_example(values: Float[Tensor, "examples columns"], wanted: Bool[Tensor, "examples columns"]) -> np.ndarray:
    """The mean over the wanted cells of every example that has any."""
    count = wanted.sum(1)
    sums = values.nan_to_num(0.0).where(wanted, 0.0).sum(1)
    return (sums[count > 0] / count[count > 0]).double().numpy()
