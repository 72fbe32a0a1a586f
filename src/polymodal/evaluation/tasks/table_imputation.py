"""Reconstruction of missing cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.missing_modalities import Labelled, columns_of, missing_cells
from polymodal.evaluation.panels import EXAMPLES, NEUTRAL, NOTE, Panels, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Table
from polymodal.training.run import answers
from polymodal.types import Batch, Example


@runtime_checkable
class CanImputeTable(Protocol):
    """Capability: impute a row's missing cells: numbers, and logits for each categorical column."""

    def impute(self, batch: Batch) -> tuple[Tensor, list[Tensor]]: ...


def imputation_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, missing_rate: float = 0.5
) -> list[Score]:
    """Impute masked cells of the table with the example's own image and with another example's.

    mse: squared errors of numbers, in variances of the training rows; chance is the mean of the training rows.
    accuracy: of categories; chance is the most frequent value of the training rows. Where imputation reads the image,
    mse_reduction and accuracy_gain of the own image over the other one, within an example, are above 0.
    """
    _, examples = reader.read_all(reader.corpus.rows(split))
    rows = [example["table"] for example in examples]
    columns = sum(map(len, rows[0]))
    rng = np.random.default_rng(0)
    masked = missing_cells("random_values", missing_rate, len(rows), range(columns), rng)
    truth = processor(table=rows)["table"]
    scored = torch.from_numpy(masked) & ~truth.missing
    incomplete = Labelled(examples, np.zeros(len(examples), np.int64)).without(masked).examples
    images = [example["image"] for example in examples]
    order = rng.permutation(len(images))
    another = np.roll(order, 1)[np.argsort(order)]  # a random cycle, in which no example keeps its image
    conditions = {"imputation": images, "imputation_with_shuffled_image": [images[n] for n in another]}
    scores: list[Score] = []
    errors: list[np.ndarray] = []
    accuracies: list[np.ndarray] = []
    for name, shown in conditions.items():
        given = [example | {"image": image} for example, image in zip(incomplete, shown, strict=True)]
        batches = answers(method, processor, "impute", columns_of(given))
        numbers = torch.cat([batch[0] for batch in batches])
        numeric, categorical = scored.split([numbers.shape[1], columns - numbers.shape[1]], dim=1)
        errors.append(_by_example((numbers - truth.numbers).square(), numeric))
        if len(errors[-1]):
            chance = _by_example(truth.numbers.square(), numeric)
            scores.append(Score(f"{split}/{name}/mse", errors[-1], float(chance.mean()), higher_is_better=False))
        imputed = torch.cat([_argmax(batch[1], len(batch[0])) for batch in batches])
        accuracies.append(_by_example((imputed == truth.categories).float(), categorical))
        if len(accuracies[-1]):
            modes = torch.tensor(processor.table.modes, dtype=torch.long)
            chance = _by_example((truth.categories == modes).float(), categorical)
            scores.append(Score(f"{split}/{name}/accuracy", accuracies[-1], float(chance.mean())))
    if len(errors[0]):
        scores.append(Score(f"{split}/imputation/mse_reduction_by_image", errors[1] - errors[0], 0.0))
    if len(accuracies[0]):
        scores.append(Score(f"{split}/imputation/accuracy_gain_by_image", accuracies[0] - accuracies[1], 0.0))
    return scores


def _argmax(logits: list[Tensor], rows: int) -> Int[Tensor, "rows categorical"]:
    classes = [torch.from_numpy(predicted_classes(column.numpy())) for column in logits]
    return torch.stack(classes, dim=1) if classes else torch.empty(rows, 0).long()


def _by_example(values: Float[Tensor, "examples columns"], scored: Bool[Tensor, "examples columns"]) -> np.ndarray:
    """Return the mean over the scored cells of every example that has any; NaN where one of them is NaN."""
    count = scored.sum(1)
    sums = values.where(scored, 0.0).sum(1)
    return (sums[count > 0] / count[count > 0]).double().numpy()


def plot(inputs: TaskInputs) -> Panels:
    """Images with their table: present cells in gray, masked cells with the imputed and the true value."""
    rows, examples = inputs.test_examples(EXAMPLES)
    column: Any = inputs.processor.columns["table"]
    gone = _missing(examples, 0.5)
    lacking = Labelled(examples, np.zeros(len(examples), np.int64)).without(gone).examples
    (batch,) = answers(inputs.method, inputs.processor, "impute", columns_of(lacking))
    numbers = batch[0].numpy() * np.array(column.std) + np.array(column.mean)
    places = _argmax(batch[1], len(examples)).numpy()
    panels = []
    for number, (row, example) in enumerate(zip(rows.tolist(), examples, strict=True)):
        table_row, masked = example["table"], gone[number]
        cells = [
            (name, f"{table_row.numbers[place]:.3g}", f"{numbers[number, place]:.3g}")
            for place, name in enumerate(column.numeric)
        ]
        cells += [
            (
                name,
                values[table_row.categories[place]] if table_row.categories[place] >= 0 else "nan",
                values[places[number, place]],
            )
            for place, (name, values) in enumerate(column.categorical.items())
        ]
        lines = [
            (f"{name}: {guess} imputed, true {truth}", NEUTRAL) if is_masked else (f"{name}: {truth}", NOTE)
            for is_masked, (name, truth, guess) in zip(masked, cells, strict=True)
            if truth != "nan"
        ]
        lines.sort(key=lambda line: line[1] == NOTE)  # masked cells first
        image = value_panel(inputs.corpus, row, inputs.corpus.column_with(Image))
        panels.append([image, text_panel(lines)])
    return Panels(panels, "Imputed cells of tables, half of them masked", (1.0, 3.2))


def _missing(examples: Sequence[Example], rate: float) -> Bool[np.ndarray, "examples columns"]:
    """The cells that are masked, sampled at random with a fixed seed."""
    columns = sum(map(len, examples[0]["table"]))
    return missing_cells("random_values", rate, len(examples), range(columns), np.random.default_rng(0))


task = Task(
    capability=CanImputeTable,
    requires=((Table,),),
    order=100,
    score=lambda inputs: inputs.over_test_splits(imputation_scores),
    metrics={
        "mse": MetricKind("variances", higher_is_better=False),
        "mse_reduction_by_image": MetricKind("variances"),
        "accuracy": MetricKind(),
        "accuracy_gain_by_image": MetricKind(is_fraction=False),
    },
    plot=plot,
    headline=("imputation/mse", "imputation/accuracy"),
    forward_methods=("impute",),
)
