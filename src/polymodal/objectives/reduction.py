"""Means over terms whose number differs between processes, such as masked positions or valid pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.distributed import all_gather, world_size


def global_mean(total: Float[Tensor, ""], count: Int[Tensor, ""] | Float[Tensor, ""] | int) -> Float[Tensor, ""]:
    """Return this process's sum of terms over the mean number of terms per process; 0 where no process has any.

    The trainer averages it over processes, which gives the mean over all terms: averaging each process's own mean would
    weight terms of processes with few terms more. A collective: all processes call it in the same steps.
    """
    counted = torch.as_tensor(count, device=total.device).to(total.dtype)
    mean_count = all_gather(counted[None]).sum() / world_size()
    return total / torch.where(mean_count > 0, mean_count, 1.0)
