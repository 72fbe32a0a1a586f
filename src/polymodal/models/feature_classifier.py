"""Classifier over several features of one method: a linear head for each, whose logits are averaged.

The features may be of towers and of a fusion, as in TIP (section 3.4); heads of the towers alone are late fusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureClassifier(nn.Module):
    """A base class beside a method with `features`; fine-tuning trains the heads and, unless frozen, the method."""

    classifiers: nn.ModuleDict

    def add_classifiers(self, widths: Mapping[str, int], classes: int) -> None:
        """Add the heads. widths: of the features, by name."""
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, classes) for name, width in widths.items()})

    def features(self, batch: Any) -> dict[str, Tensor]:
        """Return a vector of each example for every head."""
        raise NotImplementedError

    def classify(self, batch: Any) -> Float[Tensor, "batch classes"]:
        """Return the mean of the heads' logits."""
        features = self.features(batch)
        return torch.stack([head(features[name]) for name, head in self.classifiers.items()]).mean(0)

    def classification_losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the cross-entropy of the label."""
        return {"classification": F.cross_entropy(self.classify(batch), batch["label"])}
