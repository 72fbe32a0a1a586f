"""What the recipes of this family share: a decoder with images among its words, which is asked and which writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.constraints import PositiveInt
from polymodal.data.conversation import IMAGE, TiledImageColumn, conversation_columns
from polymodal.data.conversation_format import ConversationFormat
from polymodal.data.processor import BatchFormat, Declared, Processor
from polymodal.data.sequence import TEXT, PackedSequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.layers.decoder import ExpertAssignment
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import patchify, unpatchify
from polymodal.objectives.autoregressive import next_token_losses, prediction_positions, segment_sum
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Batch


class MultimodalLanguageModel(nn.Module):
    """A language model that reads the tokens of images among its own."""

    def __init__(self, language_model: nn.Module, image_encoder: nn.Module, end: int, modality_experts: bool):
        """language_model: a `LanguageModel`, or a pretrained one. image_encoder: the cells of all tiles, one after the
        other, to as many tokens. end: the mark after an answer. modality_experts: whether the language model has MLPs
        of two kinds, text's first and the image's second.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.language_model: Any = language_model
        self.end = end
        self.modality_experts = modality_experts

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The mean of -log p over all tokens that are asked for."""
        return {"lm": self._token_losses(batch["sequences"])[0].mean()}

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The log-probability of each row's answer, with its end mark; a row holds one sequence."""
        losses, rows = self._token_losses(batch["sequences"])
        return -segment_sum(losses, rows, len(batch["sequences"]))

    def generate_text(
        self, batch: Batch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """What the model goes on with after each prompt, as token numbers without the end mark."""
        prompts: PackedSequences = batch["prompts"]
        vectors, routes = self._read(prompts)
        return self.language_model.generate(
            vectors, prompts.position, prompts.document, routes, self.end, decoding or Decoding(), generator
        )

    def _token_losses(self, sequences: PackedSequences) -> tuple[Tensor, Tensor]:
        """-log p of every token that is asked for, and its row."""
        vectors, routes = self._read(sequences)
        states = self.language_model(vectors, sequences.position, sequences.document, routes)
        rows, places = prediction_positions(sequences.document, sequences.predicted)
        logits = self.language_model.logits(states[rows, places - 1])
        return next_token_losses(logits, sequences.ids[rows, places]), rows

    def _read(self, sequences: PackedSequences) -> tuple[Float[Tensor, "rows length width"], ExpertAssignment | None]:
        """Vectors of all places, and which of them are text and which are of images, for the experts."""
        vectors = self.language_model.embedding(sequences.ids)
        if IMAGE in sequences.features:
            imaged = sequences.of(IMAGE)
            seen = self.image_encoder(sequences.features[IMAGE])
            vectors = vectors.masked_scatter(imaged[..., None], seen.to(vectors.dtype))
        else:
            imaged = torch.zeros_like(sequences.predicted)
        if not self.modality_experts:
            return vectors, None
        flat = imaged.flatten()
        return vectors, [(~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)]


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
class ConversationRecipe(OptimizerConfig):
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

    def build(self, processor: Processor) -> MultimodalLanguageModel:
        embedding = ImageEmbedding(
            self.patch_size, self.tokens_per_tile, self.patch_embed_dim, self.language_model.width
        )
        experts = (TEXT, IMAGE) if self.visual_experts else (TEXT,)
        language_model = self.language_model.build(processor.tokenizer.vocab_size, experts)
        return MultimodalLanguageModel(language_model, embedding, processor.conversation.end, self.visual_experts)
