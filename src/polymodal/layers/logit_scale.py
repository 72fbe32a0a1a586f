"""The learned inverse temperature of a contrastive loss, as CLIP and open_clip hold it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.errors import UserError

CLIP_INIT = 1 / 0.07  # Radford et al. 2021, section 2.5
CLIP_MAX = 100.0


class LogitScale(nn.Module):
    """Learned logit scale (inverse temperature) exp(logit_scale); the parameter is its logarithm.

    The bounds are applied by `clamp_` after an optimizer step (CLIP, released code), not in the forward pass: a clamp
    in the forward pass has no gradient beyond its bound, so that the parameter could never return. `after_step` is the
    hook that a training loop calls.

    CLIP: init 1 / 0.07, max 100. ALBEF: min 2, max 1000 (temperature within 0.001 to 0.5). SigLIP: init 10, max None.
    """

    def __init__(self, init: float = CLIP_INIT, max: float | None = CLIP_MAX, min: float | None = None):
        """Build the parameter.

        init, max, min: of the scale, not of its logarithm. Raises UserError when init is not within the bounds.
        """
        super().__init__()
        low, high = min if min is not None else 0.0, max if max is not None else math.inf
        if not (init > 0 and low <= init <= high):
            raise UserError(f"The initial logit scale is above 0 and from {low:g} to {high:g}, not {init:g}.")
        self.min, self.max = min, max
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init)))

    def forward(self) -> Float[Tensor, ""]:
        """Return the inverse temperature."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp the parameter to the bounds."""
        if self.min is not None or self.max is not None:
            self.logit_scale.clamp_(
                min=None if self.min is None else math.log(self.min),
                max=None if self.max is None else math.log(self.max),
            )

    def after_step(self, fraction: float = 0.0) -> None:
        """Apply the bounds after an optimizer step. fraction: of training that is done; unused here."""
        self.clamp_()

    def extra_repr(self) -> str:
        return f"min={self.min}, max={self.max}"
