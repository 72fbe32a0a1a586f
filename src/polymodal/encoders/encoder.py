"""Base class of encoders."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module):
    """Encoder (tower) whose `forward` returns tokens first and the pooled vector last."""

    def pooled(self, value: Any) -> Float[Tensor, "batch width"]:
        """Return the pooled vector alone, for methods that need no tokens; this is what the feature cache stores."""
        return self(value)[-1]
