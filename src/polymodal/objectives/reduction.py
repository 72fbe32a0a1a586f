"""The mean over terms of which processes have different numbers, such as masked positions or valid pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.distributed import all_gather, world_size


def global_mean(total: Float[Tensor, ""], count: Int[Tensor, ""] | int) -> Float[Tensor, ""]:
    """Return this process's sum of terms over the mean number of terms of a process; 0 where no process has any.

    The mean of that over processes, which the trainer takes, is the mean over all terms: a mean of each process's own
    mean would weigh a term more where there are few. All processes call this in the same steps.
    """
    counted = torch.as_tensor(count, device=total.device).to(total.dtype)
    mean_count = all_gather(counted[None]).sum() / world_size()
    return total / torch.where(mean_count > 0, mean_count, 1.0)
