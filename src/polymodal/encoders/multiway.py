"""A picture and a text in one transformer with experts of each (BEiT-3, Wang et al. 2023), and an object token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.layers.multiway import MultiwayTransformer
from polymodal.modalities.image import check_tiles, patchify
from polymodal.modalities.text import Tokens
from polymodal.ranges import BelowOne, Context, Count, Whole


@dataclass(frozen=True)
class MultiwayEncoderConfig:
    """The one tower of pictures and texts."""

    size: Count = 96
    """Side in pixels of the square picture, to which any picture is stretched."""
    patch: Count = 32
    """Side of a patch in pixels; must divide the size."""
    vocabulary: Count = 1024
    """Entries of the byte-level BPE that is learned on the corpus."""
    context: Context = 32
    """Longest text in tokens, with start and end mark; longer ones are cut."""
    width: Count = 96
    """Channels of every token."""
    depth: Whole = 3
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads of a block."""
    drop_path: BelowOne = 0.0
    """Probability that an example skips half of the last block while training; less in the blocks before."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    def build(self, vocabulary: int) -> MultiwayEncoder:
        """vocabulary: entries of the tokenizer."""
        return MultiwayEncoder(self, vocabulary)


class MultiwayEncoder(nn.Module):
    """Patches after a token of their own, which stands for the whole picture or the object that is meant; words."""

    def __init__(self, config: MultiwayEncoderConfig, vocabulary: int):
        super().__init__()
        check_tiles(config.patch, config.size)
        self.config = config
        width = config.width
        self.patch = nn.Linear(3 * config.patch**2, width)
        self.object_token = nn.Parameter(torch.empty(width))
        self.patch_positions = nn.Parameter(torch.empty(1 + config.grid**2, width))
        self.word = nn.Embedding(vocabulary + 1, width)  # the last one stands for hidden words
        self.word_positions = nn.Parameter(torch.empty(config.context, width))
        self.transformer = MultiwayTransformer(width, config.depth, config.heads, config.drop_path)
        for part in (self.object_token, self.patch_positions, self.word.weight, self.word_positions):
            nn.init.normal_(part, std=width**-0.5)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"],
        text: Tokens,
        joint: bool = True,
        hidden: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"], Float[Tensor, "batch length width"]]:
        """joint: whether picture and text attend to each other. hidden: words that keep their place alone.

        Returns the object token, the patches, and the words with their padding.
        """
        patches = self.patch(patchify(image, self.config.patch))
        seen = torch.cat([self.object_token.expand(len(image), 1, -1), patches], dim=1) + self.patch_positions
        ids = text.ids if hidden is None else text.ids.masked_fill(hidden, self.word.num_embeddings - 1)
        read = self.word(ids) + self.word_positions[: ids.shape[1]]
        seen, read = self.transformer(seen, read, text.mask, joint)
        return seen[:, 0], seen[:, 1:], read
