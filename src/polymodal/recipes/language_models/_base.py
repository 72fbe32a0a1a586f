"""What the recipes of this family share: conversations, and a language model that sees through a patch embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from polymodal.constraints import PositiveInt
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import IMAGE, conversation_columns
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.processor import BatchFormat, Declared, Processor
from polymodal.data.sequence import TEXT
from polymodal.encoders.image_embedding import ImageEmbedding
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.training.recipe import TrainingRecipe


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
    """A language model that sees through a patch embedding and, if wanted, visual experts."""

    tile_size: PositiveInt = 96
    """Side of a tile in pixels."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; pixel shuffle makes one visual token of 2 x 2 patches."""
    patch_embed_dim: PositiveInt = 64
    """Channels of a patch."""
    visual_experts: bool = True
    """Whether visual tokens have MLPs of their own; without, they share those of text."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"tile_size": 128, "patch_embed_dim": 128},
        "base": {"tile_size": 224, "patch_size": 14, "patch_embed_dim": 384},
    }

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
