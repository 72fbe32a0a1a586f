"""Connectors: tokens of an encoder to tokens of a language model's width, by one interface.

MM1 (McKinzie et al. 2024) compares such connectors; what matters most there is the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.constraints import PositiveInt
from polymodal.errors import UserError
from polymodal.layers.c_abstractor import CAbstractor
from polymodal.layers.perceiver_resampler import AttentionPool, PerceiverResampler
from polymodal.layers.qformer import QFormer, QFormerConfig
from polymodal.layers.token_pooling import average_pool, pixel_shuffle

ConnectorKind = Literal[
    "linear", "mlp", "pixel_shuffle", "average_pool", "attention_pool", "perceiver_resampler", "qformer", "c_abstractor"
]
OF_GRIDS = ("pixel_shuffle", "average_pool", "c_abstractor")
OF_SQUARES = ("average_pool", "c_abstractor")


@dataclass(frozen=True)
class ConnectorConfig:
    """The connector between an encoder and a language model."""

    kind: ConnectorKind = "mlp"
    """linear (LLaVA), mlp (LLaVA-1.5), pixel_shuffle and MLP (InternVL 1.5), adaptive average_pool and MLP (MM1,
    Open-Qwen2VL), attention_pool (mPLUG-video), perceiver_resampler (Flamingo), qformer (BLIP-2), c_abstractor
    (Honeybee)."""
    num_queries: PositiveInt = 64
    """Output tokens of all kinds but linear, mlp and pixel_shuffle; a square number for average_pool and
    c_abstractor."""
    factor: PositiveInt = 2
    """Sides of the blocks of patches that pixel_shuffle joins."""
    mlp_depth: PositiveInt = 2
    """Linear layers of the MLP of mlp, pixel_shuffle and average_pool, with GELU between them."""
    depth: PositiveInt = 2
    """Layers of perceiver_resampler and qformer; blocks before and after the pooling of c_abstractor."""
    num_heads: PositiveInt = 4
    """Attention heads of attention_pool, perceiver_resampler and qformer."""
    hidden_dim: PositiveInt = 128
    """Channels of qformer and c_abstractor."""

    def __post_init__(self) -> None:
        if self.kind in OF_SQUARES and math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise UserError(f"{self.kind} needs a square number of queries, not {self.num_queries}.")

    @property
    def side(self) -> int:
        """Rows and columns of the output tokens of average_pool and c_abstractor."""
        return math.isqrt(self.num_queries)

    def num_tokens(self, grid: Sequence[int]) -> int:
        """Output tokens for a grid of patches. Raises UserError for a grid that the kind cannot take."""
        if self.kind in OF_GRIDS and len(grid) != 2:
            raise UserError(f"{self.kind} needs a grid of rows and columns, not of {len(grid)} axes.")
        if self.kind in ("linear", "mlp"):
            return math.prod(grid)
        if self.kind != "pixel_shuffle":
            return self.num_queries
        if any(side % self.factor for side in grid):
            sides = " x ".join(map(str, grid))
            raise UserError(f"A grid of {sides} patches does not divide into {self.factor} x {self.factor} blocks.")
        return math.prod(grid) // self.factor**2

    def build(self, width: int, out_width: int) -> Connector:
        """width: channels of the encoder. out_width: of the language model."""
        return Connector(self, width, out_width)


class Connector(nn.Module):
    """One of the kinds, and the projection to the language model's width."""

    def __init__(self, config: ConnectorConfig, width: int, out_width: int):
        super().__init__()
        self.config = config
        kind = config.kind
        self.pool: nn.Module | None = None
        if kind == "c_abstractor":
            self.pool = CAbstractor(width, out_width, config.side, config.hidden_dim, config.depth)
            self.projection: nn.Module = nn.Identity()  # C-Abstractor ends with an MLP of its own
        elif kind == "attention_pool":
            self.pool = AttentionPool(width, config.num_heads, config.num_queries)
            self.projection = nn.Linear(width, out_width)
        elif kind == "perceiver_resampler":
            self.pool = PerceiverResampler(width, config.depth, config.num_heads, config.num_queries)
            self.projection = nn.Linear(width, out_width)
        elif kind == "qformer":
            hidden = config.hidden_dim
            sizes = QFormerConfig(
                hidden, config.depth, config.num_heads, 4 * hidden, config.num_queries, media_width=width
            )
            self.pool = QFormer(sizes)
            self.projection = nn.Linear(hidden, out_width)
        elif kind == "pixel_shuffle":
            joined = config.factor**2 * width
            # InternVL normalizes the joined patches before the MLP.
            self.projection = nn.Sequential(nn.LayerNorm(joined), projector_mlp(joined, out_width, config.mlp_depth))
        else:
            self.projection = projector_mlp(width, out_width, 1 if kind == "linear" else config.mlp_depth)

    def forward(
        self,
        tokens: Float[Tensor, "batch positions width"],
        grid: Sequence[int],
        mask: Bool[Tensor, "batch positions"] | None = None,
    ) -> Float[Tensor, "batch outputs out_width"]:
        """grid: sides of the grid that the tokens are of, row-major; (positions,) for a sequence.

        mask: False for padding; outputs of linear and mlp at padding have no meaning. Raises UserError for a mask where
        the kind needs a full grid, and for a grid that does not fit.
        """
        if math.prod(grid) != tokens.shape[1]:
            raise UserError(f"{tokens.shape[1]} tokens are no grid of {' x '.join(map(str, grid))}.")
        self.config.num_tokens(grid)
        if mask is not None and self.config.kind in OF_GRIDS and not bool(mask.all()):
            raise UserError(f"{self.config.kind} takes a full grid of patches; padding has no place in it.")
        if self.config.kind == "pixel_shuffle":
            tokens = pixel_shuffle(tokens, grid, self.config.factor)
        elif self.config.kind == "average_pool":
            tokens = average_pool(tokens, grid, (self.config.side, self.config.side))
        elif isinstance(self.pool, CAbstractor):
            tokens = self.pool(tokens, grid)
        elif isinstance(self.pool, QFormer):
            tokens, _ = self.pool(tokens, mask)
        elif self.pool is not None:
            tokens = self.pool(tokens, mask)
        return self.projection(tokens)


def projector_mlp(width: int, out_width: int, depth: int = 2) -> nn.Sequential:
    """Linear layers with GELU between them, all but the first of the output width; `mlp2x_gelu` of LLaVA-1.5.

    The last one starts with a deviation of 0.02, as the word embeddings beside which its outputs stand.
    """
    widths = [width, *[out_width] * depth]
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(widths[index], widths[index + 1]), nn.GELU()]
    last = layers[-2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers[:-1])
