"""Prompter: from image tokens to the embedding of what a prompt names, a box or a text (promptable embedding)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.layers.positions import sine_points
from polymodal.layers.projection_head import LinearProjection
from polymodal.layers.transformer import Packing, Transformer


class Prompter(nn.Module):
    """A transformer layer of one head over prompt and image tokens (CLOC, Chen et al. 2024, section 4.2).

    A box is two prompt tokens, its corners: sinusoidal positions, and a learned embedding that tells one corner from
    the other. A text is one, a linear projection of its embedding. They stand before the image tokens; the outputs of
    the prompt tokens are averaged.
    """

    def __init__(self, width: int, text_dim: int, grid: int):
        """Build the layer. width: of image tokens, a multiple of 4. text_dim: of text embeddings. grid: patches along a
        side."""
        super().__init__()
        self.grid = grid
        self.corners = nn.Parameter(torch.randn(2, width) * width**-0.5)
        self.text_projection = LinearProjection(text_dim, width)
        self.transformer = Transformer(width, depth=1, num_heads=1)
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self, prompts: Float[Tensor, "batch regions prompts width"], tokens: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch regions width"]:
        """Return what each prompt gets of its image, alone: no prompt attends to another one's tokens."""
        batch, regions, count, _ = prompts.shape
        x = torch.cat([prompts.flatten(1, 2), tokens], dim=1)
        # All prompts of an image are one sequence, whose keys and values of image tokens are computed once.
        place = torch.arange(x.shape[1], device=x.device)
        region = torch.where(place < regions * count, place // count, -1)  # -1: image tokens
        apart = (region[:, None] != region) & (region >= 0)
        bias = x.new_zeros(len(place), len(place)).masked_fill(apart, -torch.inf)
        packing = Packing.of(torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))
        packing = replace(packing, bias=bias.expand(batch, 1, -1, -1))
        rows = (torch.arange(batch, device=x.device)[:, None] * len(place) + place[: regions * count]).flatten()
        pooled = self.norm_post(self.transformer(packing.pack(x), packing, rows))
        return pooled.unflatten(0, (batch, regions, count)).mean(2)

    def box_prompts(self, boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 2 width"]:
        """Return the prompt tokens of boxes: left, top, right, bottom as fractions of the image."""
        return sine_points(boxes.unflatten(-1, (2, 2)), self.corners.shape[1], self.grid) + self.corners

    def text_prompts(self, texts: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions 1 width"]:
        """Return the prompt tokens of text embeddings."""
        return self.text_projection(texts)[..., None, :]
