"""Classification with frozen vectors: by texts that describe the classes, and by a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.evaluation.statistics import Score, ratio


def prompt_ensemble(prompts: Sequence[Float[Tensor, "_ dim"]]) -> Float[Tensor, "classes dim"]:
    """One vector a class: the normalised mean of its prompts' vectors (CLIP, section 3.1.4)."""
    return F.normalize(torch.stack([vectors.mean(0) for vectors in prompts]), dim=-1)


def predicted_classes(scores: Float[np.ndarray, "examples classes"]) -> Int[np.ndarray, " examples"]:
    """The class with the highest score of each example; -1, which is no class, where a score is NaN."""
    return np.where(np.isnan(scores).any(1), -1, np.nan_to_num(scores, nan=-np.inf).argmax(1))


def balanced_accuracy(name: str, predicted: np.ndarray, labels: np.ndarray) -> Score:
    """The mean over classes of the fraction that is right, so that a frequent class does not count for more.

    The unit is an example, with its influence on that mean.
    """
    value, influence = _mean_over_classes((predicted == labels).astype(float), labels)
    return Score.from_influence(name, value, influence, 1 / len(np.unique(labels)))


def _mean_over_classes(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over classes of their mean values, and the influence of each example on it, as by leaving it out.

    The only example of a class is taken as one of the examples of all such classes, since it has no spread.
    """
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, values) / counts
    of_class = counts[inverse]
    scale = len(labels) / (len(classes) * np.where(of_class > 1, (of_class * (of_class - 1.0)) ** 0.5, 1.0))
    return float(means.mean()), scale * (values - np.where(of_class > 1, means[inverse], means.mean()))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, classes: int) -> Int[np.ndarray, "labels predicted"]:
    """Count the examples of each class (rows) by predicted class (columns); those without a prediction in none."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    valid = predicted >= 0
    np.add.at(counts, (labels[valid], predicted[valid]), 1)
    return counts


def macro_f1(name: str, predicted: np.ndarray, labels: np.ndarray) -> Score:
    """The mean of F1 = 2 TP / (2 TP + FP + FN) over all classes that are a label or predicted (as scikit-learn).

    The unit is an example, with its influence by leaving it out (jackknife). The chance level is that of a class at
    random for every example.
    """
    classes = np.unique(np.concatenate([labels, predicted[predicted >= 0]]))
    actual, valid = np.searchsorted(classes, labels), predicted >= 0
    given, right = np.searchsorted(classes, np.where(valid, predicted, labels)), predicted == labels
    positive = np.bincount(actual[right], minlength=len(classes))
    both = np.bincount(actual, minlength=len(classes)) + np.bincount(given[valid], minlength=len(classes))
    f1 = 2 * positive / both
    left_out = np.full(len(labels), f1.sum())
    counted = np.full(len(labels), len(classes))
    # Without an example, F1 of its class changes, and that of another class which was predicted for it.
    for place, changed in ((actual, np.ones_like(right)), (given, valid & ~right)):
        remaining = both[place] - 1 - right
        left_out += np.where(changed, ratio(2 * (positive[place] - right), remaining) - f1[place], 0)
        counted -= changed & (remaining == 0)
    rates = np.bincount(actual, minlength=len(classes)) / len(labels)
    chance = float(np.mean(2 * rates / len(classes) / (rates + 1 / len(classes))))
    return Score.from_jackknife(name, float(f1.mean()), ratio(left_out, counted), chance)


def area_under_curve(name: str, likely: Float[np.ndarray, "examples classes"], labels: np.ndarray) -> Score:
    """The mean over classes of the area under the ROC curve of that class against all others.

    likely: how likely each class is, on any scale; a NaN ranks an example wrongly. The unit is an example, with its
    influence both as one of its class and as one of the others: the fraction of the others that it ranks above, and of
    the class that it ranks below (the components of DeLong et al. 1988; the area is the mean of either).
    """
    classes = np.unique(labels)
    influence = np.zeros(len(labels))
    areas, single = [], []
    for label in classes:
        of_class = labels == label
        positive = np.nan_to_num(likely[of_class, label], nan=-np.inf)
        negative = np.where(np.isnan(likely[~of_class, label]), np.inf, likely[~of_class, label])
        above = _fraction_below(positive, negative)
        below = 1 - _fraction_below(negative, positive)
        areas.append(float(above.mean()))
        for members, fractions in ((of_class, above), (~of_class, below)):
            count = len(fractions)
            if count > 1:
                spread = (count * (count - 1.0)) ** 0.5
                influence[members] += len(labels) / len(classes) / spread * (fractions - fractions.mean())
            elif count and members is of_class:
                single.append((np.flatnonzero(members)[0], areas[-1]))
    value = float(np.mean(areas))
    for place, area in single:
        influence[place] += len(labels) / len(classes) * (area - value)
    return Score.from_influence(name, value, influence, 0.5)


def _fraction_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value, the fraction of the others that are smaller; equal ones count half."""
    ordered = np.sort(others)
    smaller, not_larger = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (smaller + not_larger) / 2 / max(len(others), 1)


def zero_shot(
    name: str,
    images: Float[Tensor, "images dim"],
    labels: Int[np.ndarray, " images"],
    classes: Float[Tensor, "classes dim"],
) -> Score:
    """Balanced accuracy of the class whose text vector is most similar; also classes without an image are offered."""
    score = balanced_accuracy(name, predicted_classes((images @ classes.T).numpy()), labels)
    return replace(score, chance=1 / len(classes))


def zero_shot_scores(
    name: str,
    images: Float[Tensor, "images dim"],
    labels: Int[np.ndarray, " images"],
    classes: Float[Tensor, "classes dim"],
) -> list[Score]:
    """Mean per-class accuracy, top-1 and top-5 of the classes whose text vectors are most similar.

    top-5 is left out with five classes or fewer. Of equally similar classes, such as two of one name, the first leads.
    """
    similarity = (images @ classes.T).numpy()
    invalid = np.isnan(similarity).any(1, keepdims=True)
    order = np.argsort(-np.nan_to_num(similarity, nan=-np.inf), axis=1, kind="stable")
    hits = (order == labels[:, None]) & ~invalid
    scores = [zero_shot(f"{name}/accuracy", images, labels, classes)]
    for k in (1, 5) if len(classes) > 5 else (1,):
        scores.append(Score(f"{name}/top-{k}", hits[:, :k].any(1).astype(float), k / len(classes)))
    return scores


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe. A vector with a NaN has the class -1, which is none, and NaN probabilities.

    model: of scikit-learn; None where there was nothing to fit.
    """

    model: Any
    classes_: np.ndarray

    def predict(self, vectors: Float[np.ndarray, "examples dim"]) -> np.ndarray:
        likely = predicted_classes(self.predict_proba(vectors))
        return np.where(likely < 0, -1, self.classes_[likely])

    def predict_proba(self, vectors: Float[np.ndarray, "examples dim"]) -> Float[np.ndarray, "examples classes"]:
        likely = np.full((len(vectors), len(self.classes_)), np.nan)
        usable = _are_numbers(vectors)
        if self.model is not None and usable.any():
            likely[usable] = self.model.predict_proba(vectors[usable])
        return likely


def _are_numbers(vectors: np.ndarray) -> np.ndarray:
    return np.isfinite(vectors).all(1)


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float] = (0.01, 0.1, 1.0),
) -> LinearProbe:
    """A logistic regression of scikit-learn on frozen, standardized vectors; each part is vectors and labels.

    strengths: inverse regularization strengths, of which the best on the validation part is taken. Vectors that are no
    numbers are left out.
    """

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    usable = _are_numbers(train[0])
    vectors, labels = train[0][usable], train[1][usable]
    if len(np.unique(labels)) < 2:
        return LinearProbe(None, np.unique(train[1]))

    def fitted(strength: float) -> tuple[float, LinearProbe]:
        # Newton's steps by conjugate gradients: the whole Hessian has (classes x dimensions) squared entries.
        regression = LogisticRegression(
            C=strength, solver="newton-cg", tol=1e-6, max_iter=1000, class_weight="balanced"
        )
        model = make_pipeline(StandardScaler(), regression).fit(vectors, labels)
        probe = LinearProbe(model, model.classes_)
        return balanced_accuracy("", probe.predict(validation[0]), validation[1]).value, probe

    return max((fitted(strength) for strength in strengths), key=lambda pair: pair[0])[1]
