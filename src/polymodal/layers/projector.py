"""The head between an encoder and a loss: a perceptron with batch norm, as self-supervised methods use it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn


def projector(sizes: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers from size to size with batch norm and ReLU between them.

    last_norm: whether a batch norm ends it, as Barlow Twins needs (Zbontar et al. 2021, section 2.2).
    """
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layers += [nn.Linear(into, out, bias=False), nn.BatchNorm1d(out), nn.ReLU()]
    return nn.Sequential(*layers[: -1 if last_norm else -2])
