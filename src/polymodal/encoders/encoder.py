"""Base class of encoders, and what they give of several views of the same examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.layers.transformer import without_dropout


class Encoder(nn.Module):
    """Encoder (tower) whose `forward` returns tokens first and the pooled vector last."""

    def pooled(self, value: Any) -> Float[Tensor, "batch width"]:
        """Return the pooled vector alone, for methods that need no tokens; this is what the feature cache stores."""
        return self(value)[-1]


def pooled_views(encoder: Encoder, global_view: Any, local_views: Any) -> list[Float[Tensor, "batch width"]]:
    """Return the pooled vectors of the global view, without dropout, and of each local one, with it (CLIP-rocket).

    local_views: one after the other along the batch; None where there are none.
    """
    with without_dropout(encoder):
        views = [encoder.pooled(global_view)]
    if local_views is not None:
        views += encoder.pooled(local_views).split(len(views[0]))
    return views


def each_view(module: nn.Module, views: Iterable[Tensor]) -> list[Tensor]:
    """Return the outputs of a module for each view by itself, whose statistics its batch norms use."""
    return [module(view) for view in views]
