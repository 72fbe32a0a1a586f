"""Transformer of AIMv2: pre-norm blocks with RMSNorm, SwiGLU and no biases, causal after a prefix or bidirectional."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.layers.decoder import SwiGLU
from polymodal.layers.transformer import Attention, Block, Packing, QueryRows, Transformer, select_rows

NORM_EPS = 1e-5  # AIMv2, released code


@dataclass(frozen=True)
class UnpaddedPacking(Packing):
    """Packing of sequences of one length, where padding and packing are views."""

    def pack(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1)

    def pad(self, packed: Tensor) -> Tensor:
        return packed.unflatten(0, self.mask.shape)


class SwiGLUBlock(Block):
    """Pre-norm block without biases: x + attention(norm(x)), then x + SwiGLU(norm(x)), with RMSNorm."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, causal: bool = False, norm_eps: float = NORM_EPS):
        nn.Module.__init__(self)  # other parts than those of `Block`
        self.norm1 = nn.RMSNorm(width, norm_eps)  # type: ignore[assignment]
        self.attention = Attention(width, num_heads, causal)
        self.attention.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, norm_eps)  # type: ignore[assignment]
        self.feed_forward = SwiGLU(width, mlp_dim)

    def forward(
        self, x: Float[Tensor, "... width"], packing: Packing | None = None, query_rows: QueryRows = None
    ) -> Float[Tensor, "... width"]:
        """Apply the block. query_rows: see `Transformer.forward`."""
        x = select_rows(x, query_rows) + self.attention(self.norm1(x), packing, query_rows)
        return x + self.feed_forward(self.norm2(x))


class SwiGLUTransformer(Transformer):
    """A stack of `SwiGLUBlock`.

    With causal attention and a `Packing.prefix` of M, the first M tokens attend to each other in both directions and
    later ones causally (prefix attention, AIM, El-Nouby et al. 2024, section 3.2).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        causal: bool = False,
        norm_eps: float = NORM_EPS,
    ):
        super().__init__(width, 0, num_heads)
        blocks = [SwiGLUBlock(width, num_heads, mlp_dim, causal, norm_eps) for _ in range(depth)]
        # Projections into the residual stream are scaled by 1 / sqrt(2 * depth), as in GPT-2.
        residual_scale = (2 * max(depth, 1)) ** -0.5
        for block in blocks:
            nn.init.normal_(block.attention.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.feed_forward.gate_up.weight, std=width**-0.5)
            nn.init.normal_(block.attention.out.weight, std=width**-0.5 * residual_scale)
            nn.init.normal_(block.feed_forward.down.weight, std=mlp_dim**-0.5 * residual_scale)
        self.blocks = nn.ModuleList(blocks)
