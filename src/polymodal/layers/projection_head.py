"""Projection heads between an encoder and a loss: one linear layer, or an MLP as self-supervised methods use it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.distributed import all_gather_with_grad, world_size

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


def clip_init_(linear: nn.Linear) -> nn.Linear:
    """Initialize the weight with standard deviation in_features^-0.5 and the bias with 0 (CLIP, released code)."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class LinearProjection(nn.Linear):
    """Linear projection without bias into the joint embedding space (CLIP, figure 3)."""

    def __init__(self, in_features: int, out_features: int, normalize: bool = False):
        """Build the projection. normalize: whether outputs are L2-normalized."""
        super().__init__(in_features, out_features, bias=False)
        clip_init_(self)
        self.normalize = normalize

    def forward(self, x: Float[Tensor, "*shape in_features"]) -> Float[Tensor, "*shape out_features"]:
        x = super().forward(x)
        return F.normalize(x, dim=-1) if self.normalize else x


class Pooler(nn.Linear):
    """Linear layer and tanh (BERT's pooler)."""

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        return super().forward(x).tanh()


class ProjectionHead(nn.Sequential):
    """Multilayer perceptron (MLP) projection head: linear layers with a norm and an activation between them.

    | method | sizes | further arguments |
    |---|---|---|
    | SimCLR (Chen et al. 2020) | width, width, 128 | |
    | MoCo v2 | width, width, 128 | norm=None, bias=True |
    | BYOL projector, predictor | width, 4096, 256; 256, 4096, 256 | bias=True |
    | SimSiam projector | width, width, width, width | last_norm=True, last_norm_affine=False |
    | SimSiam predictor | width, width / 4, width | bias=True |
    | Barlow Twins | width, 8192, 8192, 8192 | last_norm=True, last_norm_affine=False before the loss |
    """

    def __init__(
        self,
        sizes: Sequence[int],
        norm: Literal["batch", "layer"] | None = "batch",
        last_norm: bool = False,
        last_norm_affine: bool = True,
        activation: Literal["relu", "gelu"] = "relu",
        bias: bool = False,
        normalize: bool = False,
    ):
        """Build the head.

        sizes: at least input and output. norm: between the layers; "batch" is synchronized over processes. last_norm:
        whether a norm without activation ends the head. last_norm_affine: whether that norm has a learned scale and
        shift. bias: of linear layers that no norm follows. normalize: whether outputs are L2-normalized. Raises
        UserError for fewer than two sizes, and for `last_norm` without a norm.
        """
        if len(sizes) < 2:
            raise UserError(f"A projection head has an input and an output size, not {list(sizes)}.")
        if last_norm and norm is None:
            raise UserError("A projection head with a last norm has a norm: choose batch or layer.")
        layers: list[nn.Module] = []
        for index, (in_features, out_features) in enumerate(itertools.pairwise(sizes), start=1):
            last = index == len(sizes) - 1
            normed = norm is not None and (last_norm or not last)
            layers.append(nn.Linear(in_features, out_features, bias=bias and not normed))
            if normed:
                affine = last_norm_affine or not last
                kind = SyncBatchNorm1d(out_features, affine=affine) if norm == "batch" else None
                layers.append(kind or nn.LayerNorm(out_features, elementwise_affine=affine))
            if not last:
                layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers)
        self.normalize = normalize

    @classmethod
    def without_norm(cls, width: int, embed_dim: int) -> ProjectionHead:
        """Return linear, ReLU, linear, with biases, and L2-normalized outputs (MoCo v2; SimCLR in lightly 1.2.22)."""
        return cls([width, width, embed_dim], norm=None, bias=True, normalize=True)

    def forward(self, x: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        # A batch norm takes what precedes the features as rows.
        x = super().forward(x) if x.ndim <= 2 else super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return F.normalize(x, dim=-1) if self.normalize else x


def projection_heads(widths: Mapping[str, int], sizes: Sequence[int], **options: Any) -> nn.ModuleDict:
    """Return a projection head for each modality. widths: of their inputs. sizes: of the other layers."""
    return nn.ModuleDict({name: ProjectionHead([width, *sizes], **options) for name, width in widths.items()})


class SyncBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over the rows of all processes, on any device; torch's SyncBatchNorm needs a GPU.

    Every process has the same number of rows (see `layers.distributed`).
    """

    def forward(self, x: Float[Tensor, "rows dims"]) -> Float[Tensor, "rows dims"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        return self._over_processes(x, world_size() * len(x))

    def _over_processes(self, x: Float[Tensor, "rows dims"], count: int) -> Float[Tensor, "rows dims"]:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # Mean and biased variance over the batch of all processes, with gradient.
        mean = all_gather_with_grad(values.mean(0, keepdim=True)).mean(0)
        variance = all_gather_with_grad((values - mean).square().mean(0, keepdim=True)).mean(0)
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        x = ((values - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return x * self.weight + self.bias if self.affine else x


class SyncBatchNorm3d(SyncBatchNorm1d):
    """Batch norm of feature maps of volumes over the positions of all processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim != 5:
            raise ValueError(f"Feature maps of volumes have five dimensions, not {input.ndim}.")

    def forward(
        self, x: Float[Tensor, "batch channels depth height width"]
    ) -> Float[Tensor, "batch channels depth height width"]:
        if self.training and world_size() * x[:, 0].numel() == 1:
            raise UserError(
                "Batch norm of volumes needs more than one value a channel: take a batch size of 2 or more."
            )
        if not self.training or world_size() == 1:
            return nn.BatchNorm1d.forward(self, x)
        last = x.movedim(1, -1)
        rows = last.flatten(0, -2)
        count = world_size() * len(rows)
        return self._over_processes(rows, count).unflatten(0, last.shape[:-1]).movedim(-1, 1)
