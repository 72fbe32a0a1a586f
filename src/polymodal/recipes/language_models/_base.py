"""What the recipes of this family share: conversations, and the patch embedding of a monolithic decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import PositiveInt
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import IMAGE, conversation_columns
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.processor import BatchFormat, Declared, Processor
from polymodal.data.sequence import TEXT
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.modalities.image import patchify, unpatchify
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.training.recipe import TrainingRecipe


class ImageEmbedding(nn.Module):
    """Cells of four neighbouring patches to tokens: patch embedding with positions, pixel shuffle, MLP."""

    def __init__(self, patch_size: int, tokens_per_tile: int, patch_embed_dim: int, width: int):
        """patch_size: in pixels. patch_embed_dim, width: channels of a patch, and of a token."""
        super().__init__()
        self.patch_size = patch_size
        self.patches = nn.Linear(3 * patch_size**2, patch_embed_dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens_per_tile, 4, patch_embed_dim))
        last = nn.Linear(width, width)
        self.project = nn.Sequential(
            nn.LayerNorm(4 * patch_embed_dim), nn.Linear(4 * patch_embed_dim, width), nn.GELU(), last
        )
        nn.init.normal_(last.weight, std=0.02)  # as short as the vectors of words, or the blocks would hardly turn them
        nn.init.zeros_(last.bias)

    def forward(self, cells: Float[Tensor, "places values"]) -> Float[Tensor, "places width"]:
        """cells: the pixels of whole tiles, one after the other."""
        four = patchify(unpatchify(cells[:, None], 2 * self.patch_size), self.patch_size)
        placed = self.patches(four).unflatten(0, (-1, len(self.positions))) + self.positions
        return self.project(placed.flatten(2).flatten(0, 1))


@dataclass(frozen=True)
class ConversationRecipe(TrainingRecipe):
    """A language model that reads and writes conversations about images, or documents with them."""

    language_model: LanguageModelConfig = LanguageModelConfig()

    def conversation(self, image: TiledImageColumn) -> Declared:
        """The columns of conversations, and the format that makes sequences of them."""
        columns = conversation_columns(image, self.language_model)
        form = partial(ConversationFormat, self.language_model.context_length)
        return {**columns, "conversation": BatchFormat(form)}


@dataclass(frozen=True)
class MonolithRecipe(ConversationRecipe):
    """A language model that sees through an embedding of patches and, if wanted, MLPs for images."""

    tile_size: PositiveInt = 96
    """Side of a tile in pixels."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; four patches become one token."""
    patch_embed_dim: PositiveInt = 64
    """Channels of a patch."""
    visual_experts: bool = True
    """Whether image tokens have MLPs of their own; without, they share those of the text."""

    @property
    def tokens_per_tile(self) -> int:
        """Tokens of a tile."""
        return (self.tile_size // (2 * self.patch_size)) ** 2

    def images(self, default_max_tiles: int, max_tiles: int) -> TiledImageColumn:
        """default_max_tiles: of an image, unless a batch says else, which may have `max_tiles`."""
        return TiledImageColumn(self.tile_size, 2 * self.patch_size, default_max_tiles, self.tile_size * max_tiles)

    def build(self, processor: Processor) -> VisionLanguageModel:
        embedding = ImageEmbedding(
            self.patch_size, self.tokens_per_tile, self.patch_embed_dim, self.language_model.width
        )
        experts = (TEXT, IMAGE) if self.visual_experts else (TEXT,)
        language_model = self.language_model.build(processor.tokenizer.vocab_size, experts)
        end = processor.conversation.end
        return VisionLanguageModel({IMAGE: embedding}, language_model, end, experts=experts[1:])
