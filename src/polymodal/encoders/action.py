"""Action encoder: a transformer over the steps of a recorded trajectory (clicks, typing, moves).

Needed by: adaptagent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.layers.transformer import Packing, Transformer, eos_index, select_rows
from polymodal.modalities.action import ActionSteps


@dataclass(frozen=True)
class ActionEncoderConfig:
    """Configuration of the action encoder."""

    num_actions: PositiveInt = 8
    """Number of action types."""
    num_targets: PositiveInt = 64
    """Number of target elements with an embedding; those beyond share the last one."""
    context_length: PositiveInt = 64
    """Maximum number of steps with a position embedding; later steps share the last one."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: NonNegativeInt = 2
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    causal: bool = True
    """Causal attention: a step attends to earlier steps only, as for predicting the next action."""

    def build(self, vocab_size: int) -> ActionEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer of typed text."""
        return ActionEncoder(self, vocab_size)


class ActionEncoder(Encoder):
    """One token per step: embeddings of action, target, typed text (mean of its tokens) and position.

    Returns packed tokens, their packing, and the last step's output.
    """

    def __init__(self, config: ActionEncoderConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.action = nn.Embedding(config.num_actions, config.width)
        self.target = nn.Embedding(config.num_targets + 1, config.width)  # the first stands for none
        self.word = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context_length, config.width))
        for parameter in (self.action.weight, self.target.weight, self.word.weight, self.positions):
            nn.init.normal_(parameter, std=0.02)
        self.transformer = Transformer(config.width, config.depth, config.num_heads, config.causal)
        self.norm_post = nn.LayerNorm(config.width)

    def forward(self, steps: ActionSteps) -> tuple[Float[Tensor, "total width"], Packing, Float[Tensor, "batch width"]]:
        packing = Packing.of(steps.mask)
        position = (packing.indices % steps.number.shape[1]).clamp(max=self.config.context_length - 1)
        words = self.word(steps.text.ids) * steps.text.content_mask[..., None]
        typed = words.sum(1) / steps.text.content_mask.sum(1, keepdim=True).clamp(min=1)
        target = (packing.pack(steps.target) + 1).clamp(max=self.config.num_targets)
        x = (
            self.action(packing.pack(steps.number))
            + self.target(target)
            + typed
            + F.embedding(position, self.positions)
        )
        x = self.norm_post(self.transformer(x, packing))
        return x, packing, select_rows(x, eos_index(packing))
