"""Actions to tokens: a transformer over what an expert did, step by step.

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
    """The tower of actions."""

    num_actions: PositiveInt = 8
    """Kinds of action."""
    num_targets: PositiveInt = 64
    """Elements that an action may be about; those beyond share the last vector."""
    context_length: PositiveInt = 64
    """Longest sequence; of longer ones, the last steps are told by the last place."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: NonNegativeInt = 2
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    causal: bool = True
    """Whether a step sees only the steps before it, as for saying what comes next."""

    def build(self, vocab_size: int) -> ActionEncoder:
        """vocab_size: entries of the tokenizer of what is typed."""
        return ActionEncoder(self, vocab_size)


class ActionEncoder(Encoder):
    """One token a step: what is done, to what, the mean of the words that are typed, and when.

    Its output has the tokens packed, with their packing, and that of the last step.
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
        place = (packing.indices % steps.number.shape[1]).clamp(max=self.config.context_length - 1)
        words = self.word(steps.text.ids) * steps.text.content_mask[..., None]
        typed = words.sum(1) / steps.text.content_mask.sum(1, keepdim=True).clamp(min=1)
        target = (packing.pack(steps.target) + 1).clamp(max=self.config.num_targets)
        x = self.action(packing.pack(steps.number)) + self.target(target) + typed + F.embedding(place, self.positions)
        x = self.norm_post(self.transformer(x, packing))
        return x, packing, select_rows(x, eos_index(packing))
