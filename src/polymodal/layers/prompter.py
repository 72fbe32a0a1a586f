"""Prompter: from image tokens to the embedding of what a prompt names, a box or a text (promptable embedding)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.positions import sine_points
from polymodal.layers.projection_head import LinearProjection

SHARPNESS = 4.0  # of the attention logits; at 1, a box prompt spends a quarter of its attention in the box, at 4 half


class Prompter(nn.Module):
    """A transformer layer of one head over prompt and image tokens (CLOC, Chen et al. 2024, section 4.2).

    A prompt is one token, which attends to the image tokens: of a box, the mean of the sinusoidal positions of its
    corners; of a text, a linear projection of its embedding. Image tokens get their positions once more, by the same
    sinusoids. Queries and keys are one random rotation that is not trained, so that a box attends around its center
    from the first step to the last, and the encoder has to make its tokens useful there. Trained, they drift from the
    box in the first steps, as the box's size alone tells some texts apart, and small runs don't find back.
    """

    positions: Tensor
    key: Tensor

    def __init__(self, width: int, text_dim: int, grid: int):
        """Build the layer. width: of image tokens, a multiple of 4. text_dim: of text embeddings. grid: patches along a
        side."""
        super().__init__()
        self.grid, self.width = grid, width
        center = (torch.arange(grid) + 0.5) / grid
        points = torch.stack([center.repeat(grid), center.repeat_interleave(grid)], dim=-1)
        self.register_buffer("positions", sine_points(points, width, grid), persistent=False)
        self.register_buffer("key", nn.init.orthogonal_(torch.empty(width, width)))
        self.text_projection = LinearProjection(text_dim, width)
        self.norm1, self.norm2, self.norm_post = (nn.LayerNorm(width) for _ in range(3))
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        # As in `layers.transformer` of one block.
        scales = {self.value: 1.0, self.out: 0.5**0.5, self.fc1: 0.5**0.5, self.fc2: 0.5**0.5}
        for linear, scale in scales.items():
            nn.init.normal_(linear.weight, std=scale * width**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(
        self, prompts: Float[Tensor, "batch regions width"], tokens: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch regions width"]:
        """Return what each prompt gets of its image, alone: no prompt attends to another one."""
        query, key = self.query_key(prompts, tokens)
        value = self.value(self.norm1(tokens + self.positions))
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None].to(query), value[:, None].to(query))
        x = prompts + self.out(attended[:, 0])
        return self.norm_post(x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def query_key(
        self, prompts: Float[Tensor, "batch regions width"], tokens: Float[Tensor, "batch patches width"]
    ) -> tuple[Float[Tensor, "batch regions width"], Float[Tensor, "batch patches width"]]:
        """Return the queries of prompts and the keys of image tokens."""
        query = F.linear(self.norm1(prompts), self.key) * SHARPNESS
        return query, F.linear(self.norm1(tokens + self.positions), self.key)

    def box_prompts(self, boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape width"]:
        """Return the prompts of boxes: left, top, right, bottom as fractions of the image."""
        corners = sine_points(boxes.unflatten(-1, (2, 2)), self.width, self.grid)
        return corners.mean(-2) * self.width**-0.5  # small beside what attention adds

    def text_prompts(self, texts: Float[Tensor, "batch regions dim"]) -> Float[Tensor, "batch regions width"]:
        """Return the prompts of text embeddings."""
        return self.text_projection(texts)
