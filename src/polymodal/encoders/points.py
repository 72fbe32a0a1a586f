"""Point-BERT encoder (Yu et al. 2022, section 3.1): groups of nearest neighbors, a mini-PointNet per group, a
transformer. Parts have the names of the official code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.pretrained import pretrained_weights
from polymodal.errors import UserError
from polymodal.layers.projection_head import SyncBatchNorm1d
from polymodal.layers.transformer import Transformer

POSITION_WIDTH = 128  # hidden width of the position MLP (released code)

# Names in Point-BERT's checkpoints -> names here, applied in order. Its pre-training saves the encoder as
# `transformer_q`, beside a momentum copy; ULIP saves it as `point_encoder`.
POINT_BERT_NAMES = (
    (r"^(?:module\.)?(?:transformer_q|base_model|point_encoder)\.", ""),
    (r"^encoder\.", ""),
    (r"^blocks\.blocks\.(\d+)\.(?:mlp\.)?", r"transformer.blocks.\1."),
    (r"\.attn\.proj\.", ".attention.out."),
    (r"\.attn\.", ".attention."),
)


@dataclass(frozen=True)
class PointEncoderConfig:
    """Configuration of the point cloud encoder."""

    channels: PositiveInt = 6
    """Values per point that are read: x, y, z, then color; 3 for Point-BERT's released weights."""
    num_groups: PositiveInt = 32
    """Number of groups (tokens), whose centers come from farthest point sampling (FPS)."""
    group_size: PositiveInt = 16
    """Points per group: the k nearest neighbors (kNN) of its center."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    encoder_dims: NonNegativeInt = 0
    """Output width of the mini-PointNet; 0: the embedding width."""
    encoder_hidden_dims: PositiveInt = 32
    """Width h of the mini-PointNet's first layer; its four layers have h, 2 h, 4 h and `encoder_dims` channels; 128 in
    Point-BERT."""
    norm: Literal["batch", "layer"] = "batch"
    """Norm of the mini-PointNet: batch norm (Point-BERT), or layer norm, which permits micro-batches."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate (stochastic depth) of the last block; rates increase linearly from 0."""
    pool_type: Literal["avg", "cls_max"] = "avg"
    """Global pooling: mean over groups ("avg"), or CLS token concatenated with the maximum over groups ("cls_max",
    Point-BERT), which is twice as wide."""

    @property
    def pooled_width(self) -> int:
        """Width of the pooled vector."""
        return self.width * (2 if self.pool_type == "cls_max" else 1)

    @classmethod
    def point_bert(cls, depth: int = 12, channels: int = 3) -> PointEncoderConfig:
        """Return the published configuration of Point-BERT and ULIP; 18 blocks and 6 channels in ULIP-2."""
        return cls(
            channels,
            num_groups=512,
            group_size=32,
            width=384,
            depth=depth,
            num_heads=6,
            encoder_dims=256,
            encoder_hidden_dims=128,
            drop_path_rate=0.1,
            pool_type="cls_max",
        )


class PointEncoder(Encoder):
    """Point-BERT encoder: one token per group and the pooled vector; invariant to the order of points.

    Positions are absolute: point clouds are centered before (`data.columns.points`).
    """

    def __init__(self, config: PointEncoderConfig):
        super().__init__()
        self.config = config
        width, dims, out = config.width, config.encoder_hidden_dims, config.encoder_dims or config.width
        norm = SyncBatchNorm1d if config.norm == "batch" else nn.LayerNorm
        # Mini-PointNet: 1 x 1 convolutions are linear layers of every point.
        self.first_conv = nn.Sequential(
            nn.Linear(config.channels, dims), norm(dims), nn.ReLU(), nn.Linear(dims, 2 * dims)
        )
        self.second_conv = nn.Sequential(
            nn.Linear(4 * dims, 4 * dims), norm(4 * dims), nn.ReLU(), nn.Linear(4 * dims, out)
        )
        self.reduce_dim = nn.Linear(out, width)
        self.pos_embed = nn.Sequential(nn.Linear(3, POSITION_WIDTH), nn.GELU(), nn.Linear(POSITION_WIDTH, width))
        with_class = config.pool_type == "cls_max"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if with_class else None
        self.cls_pos = nn.Parameter(torch.randn(1, 1, width)) if with_class else None
        self.transformer = Transformer(
            width, config.depth, config.num_heads, drop_path_rate=config.drop_path_rate, qkv_bias=False
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, points: Float[Tensor, "batch points channels"]
    ) -> tuple[Float[Tensor, "batch groups width"], Float[Tensor, "batch pooled"]]:
        """Encode point clouds. points: at least `group_size` points each; centers repeat below `num_groups` points."""
        group, centers = self._grouped(points[..., : self.config.channels])
        x, positions = self.reduce_dim(self._mini_pointnet(group)), self.pos_embed(centers)
        if self.cls_token is not None and self.cls_pos is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
            positions = torch.cat([self.cls_pos.expand(len(x), -1, -1), positions], dim=1)
        x = self.norm(self.transformer(x, positions=positions))
        if self.cls_token is None:
            return x, x.mean(dim=1)
        return x[:, 1:], torch.cat([x[:, 0], x[:, 1:].amax(dim=1)], dim=-1)

    @torch.no_grad()
    def load_point_bert(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a Point-BERT or ULIP checkpoint. Raises UserError when one is missing or does not fit."""
        renamed = {}
        for name, tensor in weights.items():
            for pattern, replacement in POINT_BERT_NAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        for name, weight in self.state_dict().items():
            given = renamed.get(name)
            if given is not None and "_conv." in name and given.ndim == 3:
                given = given.squeeze(2)  # a convolution over single points
            if given is None or given.shape != weight.shape:
                shape = "no such weight" if given is None else f"one of shape {tuple(given.shape)}"
                raise UserError(
                    f"The Point-BERT weights do not fit: {name} has shape {tuple(weight.shape)} here, "
                    f"and there is {shape}; Point-BERT has --points.channels 3 --points.depth 12 (ULIP-2: 6 and 18) "
                    "--points.width 384 --points.encoder-dims 256 --points.encoder-hidden-dims 128 "
                    "--points.pool-type cls_max."
                )
            weight.copy_(given)

    def _grouped(
        self, points: Float[Tensor, "batch points channels"]
    ) -> tuple[Float[Tensor, "batch groups neighbors channels"], Float[Tensor, "batch groups 3"]]:
        """Return kNN groups around FPS centers, with coordinates relative to the center, and the centers.

        Raises UserError for clouds with fewer points than a group.
        """
        if points.shape[1] < self.config.group_size:
            raise UserError(f"Groups of {self.config.group_size} points need as many per cloud, not {points.shape[1]}.")
        with torch.no_grad():
            xyz = points[..., :3]
            centers = _take(xyz, farthest_point_sampling(xyz, self.config.num_groups))
            neighbors = torch.cdist(centers, xyz).topk(self.config.group_size, largest=False).indices
        group = _take(points, neighbors.flatten(1)).unflatten(1, neighbors.shape[1:])
        return torch.cat([group[..., :3] - centers[:, :, None], group[..., 3:]], dim=-1), centers

    def _mini_pointnet(
        self, group: Float[Tensor, "batch groups neighbors channels"]
    ) -> Float[Tensor, "batch groups dims"]:
        """Apply a per-point MLP, pool, append the pooled vector to every point, apply an MLP, and pool."""
        shape = group.shape[:3]
        features = self.first_conv(group.flatten(0, 2)).unflatten(0, shape)
        pooled = features.amax(dim=2, keepdim=True).expand_as(features)
        features = torch.cat([pooled, features], dim=-1)  # the pooled vector is first, as in the released weights
        return self.second_conv(features.flatten(0, 2)).unflatten(0, shape).amax(dim=2)


def load_point_bert(source: str, name: str, model: nn.Module) -> None:
    """Load Point-BERT weights into a model's point encoder.

    source: checkpoint, folder, or name on the hub. name: of the encoder in the model. Raises UserError when the weights
    cannot be read or do not fit.
    """
    encoder = model.get_submodule(name)
    assert isinstance(encoder, PointEncoder)
    encoder.load_point_bert(pretrained_weights(source))


def farthest_point_sampling(xyz: Float[Tensor, "batch points 3"], count: int) -> Int[Tensor, "batch count"]:
    """Return indices by farthest point sampling (FPS); the first point is the farthest from the origin."""
    nearest = xyz.square().sum(dim=-1)
    indices = [nearest.argmax(dim=1)]
    nearest = torch.full_like(nearest, torch.inf)
    for _ in range(count - 1):
        newest = _take(xyz, indices[-1][:, None])
        nearest = torch.minimum(nearest, (xyz - newest).square().sum(dim=-1))
        indices.append(nearest.argmax(dim=1))
    return torch.stack(indices, dim=1)


def _take(values: Float[Tensor, "batch points channels"], rows: Int[Tensor, "batch rows"]) -> Tensor:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
