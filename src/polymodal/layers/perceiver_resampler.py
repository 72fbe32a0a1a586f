"""Perceiver resampler: any number of media tokens to a fixed number of latents (Flamingo, section 2.1, figure 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttention, mlp


class PerceiverLayer(nn.Module):
    """Pre-norm layer: z + attention(q = z, kv = [x; z]), then z + MLP(z)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = CrossAttention(width, num_heads, width, head_dim, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = mlp(width, int(mlp_ratio * width), bias=False, activation=activation)

    def forward(
        self,
        latents: Float[Tensor, "batch latents width"],
        media: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch latents width"]:
        """Apply the layer. mask: over media tokens followed by latents."""
        normed = self.norm_latents(latents)
        # Keys and values are the media tokens and the latents themselves (figure 5).
        context = torch.cat([self.norm_media(media), normed], dim=1)
        latents = latents + self.attention(normed, context, mask)
        return latents + self.mlp(self.norm_mlp(latents))


class PerceiverResampler(nn.Module):
    """Learned latents that cross-attend to the media tokens and to each other, and a final norm."""

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        num_latents: int,
        head_dim: int | None = None,
        max_frames: int = 1,
        mlp_ratio: float = 4.0,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        """Build the resampler.

        max_frames: frames of a video, each with a learned time embedding; 1: none. activation: squared ReLU in the
        paper, by default GELU.
        """
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, width))
        self.time = nn.Parameter(torch.randn(max_frames, 1, width)) if max_frames > 1 else None
        self.layers = nn.ModuleList(
            PerceiverLayer(width, num_heads, head_dim, mlp_ratio, activation) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        media: Float[Tensor, "batch *frames tokens width"],
        mask: Bool[Tensor, "batch *frames tokens"] | None = None,
    ) -> Float[Tensor, "batch latents width"]:
        """Return the latents. media: tokens of an image, or of every frame of a video. mask: False for padding."""
        if media.ndim == 4:
            if self.time is not None:
                if media.shape[1] > len(self.time):
                    raise UserError(f"A video of {media.shape[1]} frames has more than max_frames={len(self.time)}.")
                media = media + self.time[: media.shape[1]]
            media = media.flatten(1, 2)
        latents = self.latents.expand(len(media), -1, -1)
        if mask is not None:
            mask = torch.cat([mask.flatten(1), mask.new_ones(latents.shape[:2])], dim=1)
        for layer in self.layers:
            latents = layer(latents, media, mask)
        return self.norm(latents)


class AttentionPool(nn.Module):
    """Attention pooling: learned queries that cross-attend once to the tokens, and an MLP (mPLUG-video's visual
    abstractor)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_queries: int,
        mlp_ratio: float = 4.0,
        activation: Callable[[Tensor], Tensor] | None = None,
        norm_eps: float = 1e-5,
    ):
        """activation: by default GELU."""
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, width))
        self.attention = CrossAttention(width, num_heads)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = mlp(width, int(mlp_ratio * width), activation=activation)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch queries width"]:
        """Return one token per query. mask: False for padding."""
        x = self.attention(self.queries.expand(len(tokens), -1, -1), tokens, mask)
        return x + self.mlp(self.norm(x))


class MAPHead(nn.Module):
    """Multihead attention pooling (MAP) to one vector by one learned query, the probe (Zhai et al. 2022, section 3.2),
    as SigLIP has it."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.pool = AttentionPool(width, num_heads, 1, activation=partial(F.gelu, approximate="tanh"), norm_eps=1e-6)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled vector. mask: False for padding."""
        return self.pool(tokens, mask)[:, 0]

    def load_pretrained_weights(self, weights: Mapping[str, Tensor], prefix: str = "vision_model.head.") -> None:
        """Load the head of a SigLIP or SigLIP 2 checkpoint on the hub.

        weights: of the whole model. prefix: of the head's names. Raises UserError where there is no head, or one of
        another size.
        """
        head = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        width = self.pool.queries.shape[1]
        try:
            state = {"queries": head["probe"][0]}
            for kind in ("weight", "bias"):
                in_proj = head[f"attention.in_proj_{kind}"]  # query, key and value, one below the other
                state[f"attention.query.{kind}"], state[f"attention.key_value.{kind}"] = (
                    in_proj[:width],
                    in_proj[width:],
                )
                state[f"attention.out.{kind}"] = head[f"attention.out_proj.{kind}"]
                state[f"norm.{kind}"] = head[f"layernorm.{kind}"]
                state |= {f"mlp.{place}.{kind}": head[f"mlp.{name}.{kind}"] for place, name in ((0, "fc1"), (2, "fc2"))}
            self.pool.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"There is no attention pooling head of width {width} under '{prefix}'.") from error
