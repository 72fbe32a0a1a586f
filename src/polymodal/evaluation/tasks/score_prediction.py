"""Prediction of mean opinion scores of quality or aesthetics: rank and linear correlation (SRCC, PLCC)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.panels import EXAMPLES, Panels, value_panel
from polymodal.evaluation.statistics import MetricKind, Score, group_numbers
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Table
from polymodal.training.run import answers, embed
from polymodal.types import Batch

GROUPS = 100  # of examples that the jackknife leaves out
PENALTIES = tuple(np.logspace(-3, 3, 7))  # of the linear regression, by leave-one-out
MAX_PROBED = 1000  # labelled examples of the linear regression

Correlation = Callable[[np.ndarray, np.ndarray], float]


@runtime_checkable
class CanPredictScores(Protocol):
    """Capability: predicted scores (examples, scores), as trained, and by the prompts alone (zero-shot).

    The processor's column `scores` has their names and truth.
    """

    def predict_scores(self, batch: Batch) -> Tensor: ...

    def zero_shot_scores(self, batch: Batch) -> Tensor: ...


def srcc(predicted: Float[np.ndarray, " examples"], truth: Float[np.ndarray, " examples"]) -> float:
    """Return Spearman's rank correlation; 0 where either is constant or not finite."""
    from scipy.stats import spearmanr

    return _finite(spearmanr, predicted, truth)


def plcc(predicted: Float[np.ndarray, " examples"], truth: Float[np.ndarray, " examples"]) -> float:
    """Return Pearson's linear correlation, without a fitted curve; 0 where either is constant or not finite."""
    from scipy.stats import pearsonr

    return _finite(pearsonr, predicted, truth)


def correlation_scores(name: str, predicted: np.ndarray, truth: np.ndarray) -> list[Score]:
    """Return SRCC and PLCC, whose intervals are by leaving out groups of examples."""
    scores = []
    for metric, correlation in (("SRCC", srcc), ("PLCC", plcc)):
        groups = group_numbers(len(truth), GROUPS)
        left_out = [correlation(predicted[groups != group], truth[groups != group]) for group in np.unique(groups)]
        value = correlation(predicted, truth)
        scores.append(Score.from_jackknife(f"{name}/{metric}", value, np.array(left_out), 0.0))
    return scores


def prediction_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Return the correlations of trained and zero-shot predictions with each score of a split.

    linear_regression_NAME: ridge regression on the embeddings of the labelled training images, whose penalty is chosen
    by leave-one-out; none where the corpus has fewer than two of them.
    """
    rows, examples = reader.read_split(split)
    images, column = [example["image"] for example in examples], processor.scores
    truth = np.stack([column.load(reader.corpus, row) for row in rows.tolist()])
    predictions = {
        task: torch.cat(answers(method, processor, capability, {"image": images}, 64)).float().numpy()
        for task, capability in (("predict", "predict_scores"), ("zero_shot", "zero_shot_scores"))
    }
    if split != "validation" and isinstance(method, CanEmbed) and "train" in reader.corpus.splits:
        predictions["linear_regression"] = _regressed(method, processor, reader, images)
    scores = []
    for place, name in enumerate(column.names):
        there = ~np.isnan(truth[:, place])
        if there.sum() > 2:
            for task, predicted in predictions.items():
                if np.isnan(predicted[:, place]).all() and task == "linear_regression":
                    continue
                scores += correlation_scores(f"{split}/{task}_{name}", predicted[there, place], truth[there, place])
    return scores


def _regressed(method: nn.Module, processor: Processor, reader: Reader, images: list[np.ndarray]) -> np.ndarray:
    """Return the predictions of ridge regression, NaN for scores without labels."""
    from sklearn.linear_model import RidgeCV

    vectors = embed(method, processor, 256, image=images)["image"].numpy()
    predicted = np.full((len(images), len(processor.scores.names)), np.nan)
    for place, rows in enumerate(processor.scores.labelled_rows(reader.corpus).values()):
        if len(rows) < 2:
            continue
        rows, examples = reader.read_all(rows[:: -(-len(rows) // MAX_PROBED)])
        labels = np.array([processor.scores.load(reader.corpus, row)[place] for row in rows.tolist()])
        train = embed(method, processor, 256, image=[example["image"] for example in examples])["image"].numpy()
        is_finite = np.isfinite(train).all() and np.isfinite(vectors).all()
        predicted[:, place] = RidgeCV(PENALTIES).fit(train, labels).predict(vectors) if is_finite else 0.0
    return predicted


def _finite(correlation: Callable[..., tuple[float, float]], predicted: np.ndarray, truth: np.ndarray) -> float:
    if len(truth) < 2 or not (np.isfinite(predicted).all() and np.isfinite(truth).all()):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant predictions
        value = float(correlation(predicted, truth)[0])
    return value if np.isfinite(value) else 0.0


def plot(inputs: TaskInputs) -> Panels:
    """Test images of each score in the order of their predictions, with prediction and truth."""
    column, lines = inputs.processor.scores, []
    rows, examples = inputs.test_examples(200)
    truth = np.stack([column.load(inputs.corpus, row) for row in rows.tolist()])
    images = {"image": [example["image"] for example in examples]}
    predicted = torch.cat(answers(inputs.method, inputs.processor, "predict_scores", images, 64)).numpy()
    for place, name in enumerate(column.names):
        there = np.flatnonzero(~np.isnan(truth[:, place]))
        if not len(there):
            continue
        order = there[np.argsort(predicted[there, place], kind="stable")]
        some = order[np.linspace(0, len(order) - 1, min(EXAMPLES + 2, len(order))).round().astype(int)]
        titles = [f"{name} {predicted[n, place]:.2f}\nrated {truth[n, place]:.2f}" for n in some]
        image = inputs.corpus.column_with(Image)
        lines.append(
            [value_panel(inputs.corpus, int(rows[n]), image, title) for n, title in zip(some, titles, strict=True)]
        )
    return Panels(lines, "Test images in the order of predicted scores, 0 to 1")


def _has_scores(inputs: TaskInputs) -> bool:
    read = getattr(inputs.processor, "columns", {})
    return "scores" in read and inputs.corpus.has_modality(Image) and inputs.corpus.has_modality(Table)


task = Task(
    capability=CanPredictScores,
    condition=_has_scores,
    order=5,
    score=lambda inputs: inputs.over_test_splits(prediction_scores),
    validate=lambda inputs: prediction_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    plot=plot,
    metrics={"SRCC": MetricKind(is_fraction=False), "PLCC": MetricKind(is_fraction=False)},
    headline=("predict_*/SRCC", "predict_*/PLCC", "zero_shot_*/SRCC"),
    forward_methods=("predict_scores", "zero_shot_scores"),
)
