"""Prompter: from image tokens to the embedding of what a prompt names, a box or a text (promptable embedding)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.layers.positions import sine_points
from polymodal.layers.projection_head import LinearProjection
from polymodal.layers.transformer import Transformer

PrompterPoolType = Literal["avg", "prompt"]


class Prompter(nn.Module):
    """A transformer layer with one head over a prompt and the image tokens (CLOC, Chen et al. 2024, section 3.3).

    A box is two tokens, the sinusoidal positions of its corners. A text is one token, a linear projection of its
    embedding. The embedding of a prompt is the mean of all outputs of the layer, of prompt and image (appendix B.1).

    With `pool_type` prompt, it is the output at the prompt alone, and a box is one token, the mean of its corners'
    sinusoids: for wavelengths longer than the box, the position of its center. Image tokens then get their positions
    once more, by the same sinusoids, so that a query finds the tokens of its box.
    """

    positions: Tensor | None

    def __init__(self, width: int, text_dim: int, grid: int, pool_type: PrompterPoolType = "avg"):
        """Build the layer. width: of image tokens, a multiple of 4. text_dim: of text embeddings. grid: patches along a
        side."""
        super().__init__()
        self.grid, self.width, self.pool_type = grid, width, pool_type
        center = (torch.arange(grid) + 0.5) / grid
        points = torch.stack([center.repeat(grid), center.repeat_interleave(grid)], dim=-1)
        positions = sine_points(points, width, grid) if pool_type == "prompt" else None
        self.register_buffer("positions", positions, persistent=False)
        self.text_projection = LinearProjection(text_dim, width)
        self.transformer = Transformer(width, depth=1, num_heads=1)
        self.norm_post = nn.LayerNorm(width)

    def forward(
        self, prompts: Float[Tensor, "batch regions prompt width"], tokens: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch regions width"]:
        """Return the embedding of each prompt, which is a sequence of its own with the tokens of its image."""
        batch, regions, length, _ = prompts.shape
        tokens = tokens if self.positions is None else tokens + self.positions
        x = torch.cat([prompts, tokens[:, None].expand(-1, regions, -1, -1)], dim=2).flatten(0, 1)
        rows = None
        if self.pool_type == "prompt":
            start = torch.arange(batch * regions, device=x.device) * x.shape[1]
            rows = (start[:, None] + torch.arange(length, device=x.device)).flatten()
        outputs = self.norm_post(self.transformer(x, query_rows=rows))
        return outputs.reshape(batch, regions, -1, self.width).mean(2)

    def box_prompts(self, boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape prompt width"]:
        """Return the prompts of boxes: left, top, right, bottom as fractions of the image."""
        corners = sine_points(boxes.unflatten(-1, (2, 2)), self.width, self.grid)
        if self.pool_type == "avg":
            return corners
        return corners.mean(-2, keepdim=True) * self.width**-0.5  # a norm below 1, near that of text prompts

    def text_prompts(self, texts: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions 1 width"]:
        """Return the prompts of text embeddings."""
        return self.text_projection(texts).unsqueeze(2)
