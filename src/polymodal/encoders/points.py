"""Point clouds to tokens: groups of near points, a small PointNet over each, and a transformer (Point-BERT, Yu et al.
2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Transformer


@dataclass(frozen=True)
class PointEncoderConfig:
    """The point tower."""

    channels: int = 6
    """Values of a point: three of its place, then its colour."""
    groups: int = 32
    """Tokens: centres that lie as far from each other as possible."""
    neighbours: int = 16
    """Points of a group: the nearest to its centre."""
    width: int = 64
    """Channels of every token."""
    depth: int = 2
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of a block."""


class PointEncoder(Encoder):
    """One token a group, and the pooled vector; the order of points and where the cloud lies do not matter."""

    def __init__(self, config: PointEncoderConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.of_point = nn.Sequential(nn.Linear(config.channels, width), nn.GELU(), nn.Linear(width, width))
        self.of_group = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.transformer = Transformer(width, config.depth, config.heads)
        self.norm_after = nn.LayerNorm(width)

    def forward(
        self, points: Float[Tensor, "batch points channels"]
    ) -> tuple[Float[Tensor, "batch groups width"], Float[Tensor, "batch width"]]:
        """points: at least as many as there are groups, and as a group has neighbours."""
        places = points[..., :3] - points[..., :3].mean(dim=1, keepdim=True)
        with torch.no_grad():
            chosen = farthest_points(places, self.config.groups)
            centres = _take(places, chosen)
            near = torch.cdist(centres, places).topk(self.config.neighbours, largest=False).indices
        group = _take(torch.cat([places, points[..., 3:]], dim=-1), near.flatten(1)).unflatten(1, near.shape[1:])
        group = torch.cat([group[..., :3] - centres[:, :, None], group[..., 3:]], dim=-1)
        features = self.of_point(group)
        whole = features.amax(dim=2, keepdim=True).expand_as(features)
        tokens = self.of_group(torch.cat([features, whole], dim=-1)).amax(dim=2)
        x = self.norm_after(self.transformer(tokens + self.position(centres)))
        return x, x.mean(dim=1)


def farthest_points(places: Float[Tensor, "batch points 3"], count: int) -> Int[Tensor, "batch count"]:
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
