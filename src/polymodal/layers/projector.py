"""The head between an encoder and a loss: an MLP with batch norm, as self-supervised methods use it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.layers.distributed import all_gather_with_grad, world_size


def projector(sizes: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers from size to size with batch norm and ReLU between them.

    last_norm: whether a batch norm ends it, as Barlow Twins needs (Zbontar et al. 2021, section 2.2).
    """
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layers += [nn.Linear(into, out, bias=False), SyncBatchNorm1d(out), nn.ReLU()]
    return nn.Sequential(*layers[: -1 if last_norm else -2])


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, on any device; torch's own SyncBatchNorm wants a GPU."""

    def forward(self, x: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        count = world_size() * len(x)
        mean = all_gather_with_grad(x.float().mean(0, keepdim=True)).mean(0)
        variance = all_gather_with_grad((x.float() - mean).square().mean(0, keepdim=True)).mean(0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return ((x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(x.dtype)
