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
    """A transformer layer with one head over a prompt and the image tokens (CLOC, Chen et al. 2024, section 3.3).

    A box is one token, the mean of the sinusoidal positions of its two corners, where the paper has two tokens. For
    wavelengths longer than the box, that is the position of its center; as two tokens, no query knows more than a
    corner. Image tokens get their positions once more, by the same sinusoids. A text is one token, a linear projection
    of its embedding. The embedding of a prompt is the output at its token; the paper averages all outputs.
    """

    positions: Tensor

    def __init__(self, width: int, text_dim: int, grid: int):
        """Build the layer. width: of image tokens, a multiple of 4. text_dim: of text embeddings. grid: patches along a
        side."""
        super().__init__()
        self.grid, self.width = grid, width
        center = (torch.arange(grid) + 0.5) / grid
        points = torch.stack([center.repeat(grid), center.repeat_interleave(grid)], dim=-1)
        self.register_buffer("positions", sine_points(points, width, grid), persistent=False)
        self.text_projection = LinearProjection(text_dim, width)
        self.transformer = Transformer(width, depth=1, num_heads=1)
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self, prompts: Float[Tensor, "batch regions width"], tokens: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch regions width"]:
        """Return the output of each prompt, which attends to itself and to its image: no prompt sees another one."""
        (batch, regions, _), device = prompts.shape, prompts.device
        x = torch.cat([prompts, tokens + self.positions], dim=1)
        # All prompts of an image are one sequence, so that keys and values of its tokens are computed once.
        place = torch.arange(x.shape[1], device=device)
        others = (place < regions) & (place != place[:, None])
        bias = x.new_zeros(len(place), len(place)).masked_fill(others, -torch.inf)
        packing = Packing.of(torch.ones(x.shape[:2], dtype=torch.bool, device=device))
        packing = replace(packing, bias=bias.expand(batch, 1, -1, -1))
        rows = (torch.arange(batch, device=device)[:, None] * len(place) + place[:regions]).flatten()
        return self.norm_post(self.transformer(packing.pack(x), packing, rows)).unflatten(0, (batch, regions))

    def box_prompts(self, boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape width"]:
        """Return the prompts of boxes: left, top, right, bottom as fractions of the image."""
        corners = sine_points(boxes.unflatten(-1, (2, 2)), self.width, self.grid)
        return corners.mean(-2) * self.width**-0.5  # a norm below 1, near that of text prompts

    def text_prompts(self, texts: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions width"]:
        """Return the prompts of text embeddings."""
        return self.text_projection(texts)
