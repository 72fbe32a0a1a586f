"""Residual adapter: a bottleneck MLP whose output is added to frozen features (CLIP-Adapter, Gao et al. 2021)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ResidualAdapter(nn.Module):
    """x + ReLU(W2 ReLU(W1 x)), without biases (UniQA, released code). Because of the last ReLU, nothing is subtracted.

    reduction: the width divided by that of the bottleneck.
    """

    def __init__(self, width: int, reduction: int = 2):
        super().__init__()
        bottleneck = max(width // reduction, 1)
        self.fc = nn.Sequential(
            nn.Linear(width, bottleneck, bias=False), nn.ReLU(), nn.Linear(bottleneck, width, bias=False), nn.ReLU()
        )

    def forward(self, x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
        return x + self.fc(x)
