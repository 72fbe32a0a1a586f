"""What every tower has."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module):
    """A tower: `forward` returns its tokens first and the pooled vector last."""

    def pooled(self, value: Any) -> Float[Tensor, "batch width"]:
        """The pooled vector alone, for methods that look at nothing else; that is what may be kept on disk."""
        return self(value)[-1]
