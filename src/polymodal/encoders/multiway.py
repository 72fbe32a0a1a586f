"""An image and a text in one transformer with experts of each (BEiT-3, Wang et al. 2023), and an object token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.constraints import ContextLength, DecayRate, NonNegativeInt, PositiveInt
from polymodal.layers.multiway import MultiwayTransformer
from polymodal.modalities.image import check_tiles, patchify
from polymodal.modalities.text import Tokens


@dataclass(frozen=True)
class MultiwayEncoderConfig:
    """The one tower of images and texts."""

    image_size: PositiveInt = 96
    """Side in pixels of the square image, to which any image is stretched."""
    patch_size: PositiveInt = 32
    """Side of a patch in pixels; must divide the size."""
    vocab_size: PositiveInt = 1024
    """Entries of the byte-level BPE that is learned on the corpus."""
    context_length: ContextLength = 32
    """Longest text in tokens, with start and end mark; longer ones are cut."""
    width: PositiveInt = 96
    """Channels of every token."""
    depth: NonNegativeInt = 3
    """Transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    drop_path_rate: DecayRate = 0.0
    """Probability that an example skips half of the last block while training; less in the blocks before."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    def build(self, vocab_size: int) -> MultiwayEncoder:
        """vocab_size: entries of the tokenizer."""
        return MultiwayEncoder(self, vocab_size)


class MultiwayEncoder(nn.Module):
    """Patches after a token of their own, which stands for the whole image or the object that is meant; words."""

    def __init__(self, config: MultiwayEncoderConfig, vocab_size: int):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        self.config = config
        width = config.width
        self.patch = nn.Linear(3 * config.patch_size**2, width)
        self.object_token = nn.Parameter(torch.empty(width))
        self.patch_positions = nn.Parameter(torch.empty(1 + config.grid**2, width))
        self.word = nn.Embedding(vocab_size + 1, width)  # the last one stands for hidden words
        self.word_positions = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = MultiwayTransformer(width, config.depth, config.num_heads, config.drop_path_rate)
        for part in (self.object_token, self.patch_positions, self.word.weight, self.word_positions):
            nn.init.normal_(part, std=width**-0.5)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"],
        text: Tokens,
        joint: bool = True,
        word_mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"], Float[Tensor, "batch length width"]]:
        """joint: whether image and text attend to each other. word_mask: words that keep their place alone.

        Returns the object token, the patches, and the words with their padding.
        """
        patches = self.patch(patchify(image, self.config.patch_size))
        seen = torch.cat([self.object_token.expand(len(image), 1, -1), patches], dim=1) + self.patch_positions
        ids = text.ids if word_mask is None else text.ids.masked_fill(word_mask, self.word.num_embeddings - 1)
        read = self.word(ids) + self.word_positions[: ids.shape[1]]
        seen, read = self.transformer(seen, read, text.mask, joint)
        return seen[:, 0], seen[:, 1:], read
