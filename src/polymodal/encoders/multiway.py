"""Multiway encoder of image and text with modality experts (BEiT-3, Wang et al. 2023), and an object token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import ContextLength, DecayRate, NonNegativeInt, PositiveInt
from polymodal.layers.multiway import MultiwayTransformer
from polymodal.modalities.image import check_tiles, patchify
from polymodal.modalities.text import Tokens


@dataclass(frozen=True)
class MultiwayEncoderConfig:
    """Configuration of the multiway encoder."""

    image_size: PositiveInt = 96
    """Side in pixels of the square input image, to which any image is resized."""
    patch_size: PositiveInt = 32
    """Side of a patch in pixels; must divide the image size."""
    vocab_size: PositiveInt = 1024
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    context_length: ContextLength = 32
    """Maximum text length in tokens, including start and end token; longer texts are truncated."""
    width: PositiveInt = 96
    """Embedding width of tokens."""
    depth: NonNegativeInt = 3
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate (stochastic depth) of the last block; rates increase linearly from 0."""

    @property
    def grid(self) -> int:
        """Number of patches per side."""
        return self.image_size // self.patch_size

    def build(self, vocab_size: int) -> MultiwayEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return MultiwayEncoder(self, vocab_size)


class MultiwayEncoder(nn.Module):
    """Multiway transformer over an image token (whole image, or the object referred to), patches and text."""

    def __init__(self, config: MultiwayEncoderConfig, vocab_size: int):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        self.config = config
        width = config.width
        self.patch = nn.Linear(3 * config.patch_size**2, width)
        self.object_token = nn.Parameter(torch.empty(width))
        self.patch_positions = nn.Parameter(torch.empty(1 + config.grid**2, width))
        self.word = nn.Embedding(vocab_size + 1, width)  # the last entry is the mask token
        self.word_positions = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = MultiwayTransformer(width, config.depth, config.num_heads, config.drop_path_rate)
        for parameter in (self.object_token, self.patch_positions, self.word.weight, self.word_positions):
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(
        self, image: Float[Tensor, "batch 3 size size"], text: Tokens, joint: bool = True
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"], Float[Tensor, "batch length width"]]:
        """Encode image and text; the mask token's id is the vocabulary's size.

        joint: whether image and text attend to each other. Returns the object token, the patch tokens, and the padded
        text tokens.
        """
        patches = self.patch(patchify(image, self.config.patch_size))
        image_tokens = torch.cat([self.object_token.expand(len(image), 1, -1), patches], dim=1) + self.patch_positions
        text_tokens = self.word(text.ids) + self.word_positions[: text.ids.shape[1]]
        image_tokens, text_tokens = self.transformer(image_tokens, text_tokens, text.mask, joint)
        return image_tokens[:, 0], image_tokens[:, 1:], text_tokens
