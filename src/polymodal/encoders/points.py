"""Point cloud encoder: groups of nearest neighbors, a mini-PointNet per group, a transformer (Point-BERT, Yu et al.
2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Transformer


@dataclass(frozen=True)
class PointEncoderConfig:
    """Configuration of the point cloud encoder."""

    channels: PositiveInt = 6
    """Values per point: x, y, z, then color."""
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
    """Width of the mini-PointNet; 0: the embedding width."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate (stochastic depth) of the last block; rates increase linearly from 0."""
    pool_type: Literal["avg", "cls_max"] = "avg"
    """Global pooling: mean over groups ("avg"), or CLS token concatenated with the maximum over groups ("cls_max",
    Point-BERT), which is twice as wide."""

    @property
    def pooled_width(self) -> int:
        """Width of the pooled vector."""
        return self.width * (2 if self.pool_type == "cls_max" else 1)


class PointEncoder(Encoder):
    """Point-BERT encoder: one token per group and the pooled vector; invariant to point order and to translation."""

    def __init__(self, config: PointEncoderConfig):
        super().__init__()
        self.config = config
        width, inner = config.width, config.encoder_dims or config.width
        self.of_point = nn.Sequential(nn.Linear(config.channels, inner), nn.GELU(), nn.Linear(inner, inner))
        self.of_group = nn.Sequential(nn.Linear(2 * inner, inner), nn.GELU(), nn.Linear(inner, inner))
        self.proj = nn.Linear(inner, width) if inner != width else nn.Identity()
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        with_class = config.pool_type == "cls_max"
        self.class_token = nn.Parameter(torch.zeros(width)) if with_class else None
        self.class_position = nn.Parameter(width**-0.5 * torch.randn(width)) if with_class else None
        self.transformer = Transformer(width, config.depth, config.num_heads, drop_path_rate=config.drop_path_rate)
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self, points: Float[Tensor, "batch points channels"]
    ) -> tuple[Float[Tensor, "batch groups width"], Float[Tensor, "batch pooled"]]:
        """Encode point clouds. points: at least `num_groups` and `group_size` points each."""
        xyz = points[..., :3] - points[..., :3].mean(dim=1, keepdim=True)
        with torch.no_grad():
            indices = farthest_point_sampling(xyz, self.config.num_groups)
            centers = _take(xyz, indices)
            # kNN groups around FPS centers; coordinates are relative to the center.
            neighbors = torch.cdist(centers, xyz).topk(self.config.group_size, largest=False).indices
        group = _take(torch.cat([xyz, points[..., 3:]], dim=-1), neighbors.flatten(1)).unflatten(1, neighbors.shape[1:])
        group = torch.cat([group[..., :3] - centers[:, :, None], group[..., 3:]], dim=-1)
        # Mini-PointNet: per-point MLP, max pool, concatenate to every point, MLP, max pool.
        features = self.of_point(group)
        pooled_features = features.amax(dim=2, keepdim=True).expand_as(features)
        tokens = self.proj(self.of_group(torch.cat([features, pooled_features], dim=-1)).amax(dim=2))
        # Position embedding: an MLP of the center's coordinates.
        tokens = tokens + self.position(centers)
        if self.class_token is None or self.class_position is None:
            x = self.norm_post(self.transformer(tokens))
            return x, x.mean(dim=1)
        first = (self.class_token + self.class_position).expand(len(tokens), 1, -1)
        x = self.norm_post(self.transformer(torch.cat([first, tokens], dim=1)))
        return x[:, 1:], torch.cat([x[:, 0], x[:, 1:].amax(dim=1)], dim=-1)


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
