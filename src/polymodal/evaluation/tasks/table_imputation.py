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
    """Capability: what a table row's missing values may be: numbers, and one distribution a category column."""

    def impute(self, batch: Batch) -> tuple[Tensor, list[Tensor]]: ...


def fill_scores(method: nn.Module, processor: Any, reader: Reader, split: str, rate: float = 0.5) -> list[Score]:
    """Errors of imputed masked cells, with the example's own image and with the image of another example.

    Errors of numbers are squared, in variances of the training rows; chance level: their mean. Categories: accuracy;
    chance level: the most frequent value.
    """
    _, examples = reader.read_all(reader.corpus.rows(split))
    rows = [example["table"] for example in examples]
    gone = _missing(examples, rate)
    truth = processor(table=rows)["table"]
    wanted = torch.from_numpy(gone) & ~truth.missing
    lacking = Labelled(examples, np.zeros(len(examples), np.int64)).without(gone).examples
    images = [example["image"] for example in examples]
    scores = []
    for name, shown in (("imputation", images), ("imputation_with_shuffled_image", [*images[1:], images[0]])):
        given = [example | {"image": image} for example, image in zip(lacking, shown, strict=True)]
        batches = answers(method, processor, "impute", columns_of(given))
        numbers = torch.cat([batch[0] for batch in batches])
        error = _by_example((numbers - truth.numbers).square(), wanted[:, : numbers.shape[1]])
        if len(error):
            guess = _by_example(truth.numbers.square(), wanted[:, : numbers.shape[1]])
            scores.append(Score(f"{split}/{name}/mse", error, float(guess.mean()), higher_is_better=False))
        places = torch.cat([_places(batch[1], len(batch[0])) for batch in batches])
        right = _by_example((places == truth.categories).float(), wanted[:, numbers.shape[1] :])
        if len(right):
            usual = truth.categories == _modes(truth.categories, wanted[:, numbers.shape[1] :])
            chance = _by_example(usual.float(), wanted[:, numbers.shape[1] :])
            scores.append(Score(f"{split}/{name}/accuracy", right, float(chance.mean())))
    return scores


def _modes(
    categories: Int[Tensor, "examples columns"], wanted: Bool[Tensor, "examples columns"]
) -> Int[Tensor, " columns"]:
    """The value that most wanted cells of each column have; -1 for a column without any."""
    columns = [column[cells] for column, cells in zip(categories.T, wanted.T, strict=True)]
    return torch.stack([column.mode().values if len(column) else torch.tensor(-1) for column in columns])


def _places(logits: list[Tensor], rows: int) -> Int[Tensor, "rows categorical"]:
    places = [torch.from_numpy(predicted_classes(column.numpy())) for column in logits]
    return torch.stack(places, dim=1) if places else torch.empty(rows, 0).long()


def _by_example(values: Float[Tensor, "examples columns"], wanted: Bool[Tensor, "examples columns"]) -> np.ndarray:
    """The mean over the wanted cells of every example that has any; a NaN makes the mean NaN."""
    count = wanted.sum(1)
    sums = values.where(wanted, 0.0).sum(1)
    return (sums[count > 0] / count[count > 0]).double().numpy()


def plot(inputs: TaskInputs) -> Panels:
    """Images with their table: present cells in gray, masked cells with the imputed and the true value."""
    rows, examples = inputs.test_examples(EXAMPLES)
    column: Any = inputs.processor.columns["table"]
    gone = _missing(examples, 0.5)
    lacking = Labelled(examples, np.zeros(len(examples), np.int64)).without(gone).examples
    (batch,) = answers(inputs.method, inputs.processor, "impute", columns_of(lacking))
    numbers = batch[0].numpy() * np.array(column.std) + np.array(column.mean)
    places = _places(batch[1], len(examples)).numpy()
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
    score=lambda inputs: inputs.over_test_splits(fill_scores),
    plot=plot,
    metrics={"mse": MetricKind("variances", higher_is_better=False), "accuracy": MetricKind()},
    headline=("imputation/mse", "imputation/accuracy"),
    forward_methods=("impute",),
)
