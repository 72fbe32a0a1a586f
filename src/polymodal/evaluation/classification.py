"""Classification with frozen vectors: by texts that describe the classes, and by a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.evaluation.statistics import Score


def prompt_ensemble(prompts: Sequence[Float[Tensor, "_ dim"]]) -> Float[Tensor, "classes dim"]:
    """One vector a class: the normalised mean of its prompts' vectors (CLIP, section 3.1.4)."""
    return F.normalize(torch.stack([vectors.mean(0) for vectors in prompts]), dim=-1)


def balanced_accuracy(name: str, predicted: np.ndarray, labels: np.ndarray) -> Score:
    """The mean over classes of the share that is right, so that a frequent class does not count for more.

    The unit is an example, weighted so that the mean over examples is the mean over classes.
    """
    return Score(name, (predicted == labels) * _weights(labels), 1 / len(np.unique(labels)))


def _weights(labels: np.ndarray) -> Float[np.ndarray, " examples"]:
    """Of every example, so that the mean over examples is the mean over classes."""
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(classes) * counts[inverse])


def area_under_curve(name: str, likely: Float[np.ndarray, "examples classes"], labels: np.ndarray) -> Score:
    """The mean over classes of the area under the ROC curve of that class against all others.

    likely: how likely each class is, on any scale. The unit is an example: the share of examples of other classes for
    which its own class is less likely (the area is the mean of that over a class, Hanley and McNeil 1982), weighted as
    in `balanced_accuracy`.
    """
    places = np.empty(len(labels))
    for label in np.unique(labels):
        own, others = likely[labels == label, label], np.sort(likely[labels != label, label])
        below, not_above = np.searchsorted(others, own, "left"), np.searchsorted(others, own, "right")
        places[labels == label] = (below + not_above) / 2 / max(len(others), 1)
    return Score(name, places * _weights(labels), 0.5)


def zero_shot(
    name: str,
    images: Float[Tensor, "images dim"],
    labels: Int[np.ndarray, " images"],
    classes: Float[Tensor, "classes dim"],
) -> Score:
    """Balanced accuracy of the class whose text vector is most similar, among the classes that occur in `labels`."""
    present = np.unique(labels)
    nearest = (images @ classes[torch.from_numpy(present)].T).argmax(1).numpy()
    return balanced_accuracy(name, present[nearest], labels)


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float] = (0.01, 0.1, 1.0),
) -> Any:
    """A logistic regression of scikit-learn on frozen, standardised vectors; each part is vectors and labels.

    strengths: inverse regularisations, of which the best on the validation part is taken.
    """

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(strength: float) -> tuple[float, Any]:
        # Newton's steps by conjugate gradients: the whole Hessian has (classes x dimensions) squared entries.
        regression = LogisticRegression(
            C=strength, solver="newton-cg", tol=1e-6, max_iter=1000, class_weight="balanced"
        )
        model = make_pipeline(StandardScaler(), regression).fit(*train)
        return balanced_accuracy("", model.predict(validation[0]), validation[1]).value, model

    return max((fitted(strength) for strength in strengths), key=lambda pair: pair[0])[1]
