"""Point clouds to tokens: groups of near points, a small PointNet over each, and a transformer (Point-BERT, Yu et al.
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
    """The point tower."""

    channels: PositiveInt = 6
    """Values of a point: three of its place, then its color."""
    num_groups: PositiveInt = 32
    """Tokens: centers that lie as far from each other as possible."""
    group_size: PositiveInt = 16
    """Points of a group: the nearest to its center."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    encoder_dims: NonNegativeInt = 0
    """Channels of what is made of a group before the transformer; 0 is its width."""
    drop_path_rate: DecayRate = 0.0
    """Probability that an example skips a branch of the last block; it rises to that from 0."""
    pool_type: Literal["avg", "cls_max"] = "avg"
    """Vector of the cloud: the mean over groups, or a class token beside the largest value of each channel over groups,
    which is twice as wide (Point-BERT)."""

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled vector."""
        return self.width * (2 if self.pool_type == "cls_max" else 1)


class PointEncoder(Encoder):
    """One token a group, and the pooled vector; the order of points and where the cloud lies do not matter."""

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
        """points: at least as many as there are groups, and as a group has neighbors."""
        places = points[..., :3] - points[..., :3].mean(dim=1, keepdim=True)
        with torch.no_grad():
            chosen = farthest_point_sampling(places, self.config.num_groups)
            centers = _take(places, chosen)
            near = torch.cdist(centers, places).topk(self.config.group_size, largest=False).indices
        group = _take(torch.cat([places, points[..., 3:]], dim=-1), near.flatten(1)).unflatten(1, near.shape[1:])
        group = torch.cat([group[..., :3] - centers[:, :, None], group[..., 3:]], dim=-1)
        features = self.of_point(group)
        whole = features.amax(dim=2, keepdim=True).expand_as(features)
        tokens = self.proj(self.of_group(torch.cat([features, whole], dim=-1)).amax(dim=2))
        tokens = tokens + self.position(centers)
        if self.class_token is None or self.class_position is None:
            x = self.norm_post(self.transformer(tokens))
            return x, x.mean(dim=1)
        first = (self.class_token + self.class_position).expand(len(tokens), 1, -1)
        x = self.norm_post(self.transformer(torch.cat([first, tokens], dim=1)))
        return x[:, 1:], torch.cat([x[:, 0], x[:, 1:].amax(dim=1)], dim=-1)


def farthest_point_sampling(places: Float[Tensor, "batch points 3"], count: int) -> Int[Tensor, "batch count"]:
    """Numbers of points, each the farthest from those before it; the first is the farthest from the origin."""
    nearest = places.square().sum(dim=-1)
    chosen = [nearest.argmax(dim=1)]
    nearest = torch.full_like(nearest, torch.inf)
    for _ in range(count - 1):
        newest = _take(places, chosen[-1][:, None])
        nearest = torch.minimum(nearest, (places - newest).square().sum(dim=-1))
        chosen.append(nearest.argmax(dim=1))
    return torch.stack(chosen, dim=1)


def _take(values: Float[Tensor, "batch points channels"], rows: Int[Tensor, "batch rows"]) -> Tensor:
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))
