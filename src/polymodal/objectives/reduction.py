"""Means over terms whose number differs between processes, such as masked positions or valid pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.layers.distributed import all_gather, world_size

LossesMethod = TypeVar("LossesMethod", bound=Callable[..., dict[str, Tensor]])


def global_mean(total: Float[Tensor, ""], count: Int[Tensor, ""] | Float[Tensor, ""] | int) -> Float[Tensor, ""]:
    """Return this process's sum of terms over the mean number of terms per process; 0 where no process has any.

    The trainer averages it over processes, which gives the mean over all terms: averaging each process's own mean would
    weight terms of processes with few terms more. A collective: all processes call it in the same steps. Terms that
    differ in number between micro-batches are counted in advance, too (`mean_over`).
    """
    counted = torch.as_tensor(count, device=total.device).to(total.dtype)
    mean_count = all_gather(counted[None]).sum() / world_size()
    return total / torch.where(mean_count > 0, mean_count, 1.0)


def mean_over(counts: str) -> Callable[[LossesMethod], LossesMethod]:
    """Declare that losses are means over units whose number differs between micro-batches, such as masked tokens.

    counts: a method of the class that returns, for a batch, the number of units by name of loss. A micro-batch then
    weighs as much as it has units. Losses without a number are means over examples.
    """

    def declare(losses: LossesMethod) -> LossesMethod:
        vars(losses)["counts"] = counts
        return losses

    return declare
