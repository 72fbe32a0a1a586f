"""What the recipes of this family share: a decoder with pictures among its words, which is asked and which writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import IMAGE, MARKS, ConversationProcessor, PictureColumn
from polymodal.data.sequence import TEXT, PackedSequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.layers.decoder import Routes
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import patchify, unpatchify
from polymodal.modalities.text import Tokenizer
from polymodal.objectives.autoregressive import asked_places, next_token_losses, sum_by_sequence
from polymodal.ranges import Count
from polymodal.training.optimiser import Optimisation
from polymodal.types import Batch


class MultimodalLanguageModel(nn.Module):
    """A language model that reads the tokens of pictures among its own."""

    def __init__(self, language_model: nn.Module, image_encoder: nn.Module, end: int, by_modality: bool):
        """language_model: a `LanguageModel`, or a published one. image_encoder: the cells of all tiles, one after the
        other, to as many tokens. end: the mark after an answer. by_modality: whether the language model has perceptrons
        of two kinds, text's first and the picture's second.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.language_model: Any = language_model
        self.end = end
        self.by_modality = by_modality

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The mean of -log p over all tokens that are asked for."""
        return {"words": self._token_losses(batch["sequences"])[0].mean()}

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The log-probability of each row's answer, with its end mark; a row holds one sequence."""
        losses, rows = self._token_losses(batch["sequences"])
        return -sum_by_sequence(losses, rows, len(batch["sequences"]))

    def write(
        self, batch: Batch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """What the model goes on with after each prompt, as token numbers without the end mark."""
        prompts: PackedSequences = batch["prompts"]
        vectors, routes = self._read(prompts)
        return self.language_model.write(
            vectors, prompts.position, prompts.document, routes, self.end, decoding or Decoding(), generator
        )

    def _token_losses(self, sequences: PackedSequences) -> tuple[Tensor, Tensor]:
        """-log p of every token that is asked for, and its row."""
        vectors, routes = self._read(sequences)
        states = self.language_model(vectors, sequences.position, sequences.document, routes)
        rows, places = asked_places(sequences.document, sequences.predicted)
        logits = self.language_model.logits(states[rows, places - 1])
        return next_token_losses(logits, sequences.ids[rows, places]), rows

    def _read(self, sequences: PackedSequences) -> tuple[Float[Tensor, "rows length width"], Routes | None]:
        """Vectors of all places, and which of them are text and which are of pictures, for the experts."""
        vectors = self.language_model.embedding(sequences.ids)
        if IMAGE in sequences.features:
            pictured = sequences.of(IMAGE)
            seen = self.image_encoder(sequences.features[IMAGE])
            vectors = vectors.masked_scatter(pictured[..., None], seen.to(vectors.dtype))
        else:
            pictured = torch.zeros_like(sequences.predicted)
        if not self.by_modality:
            return vectors, None
        flat = pictured.flatten()
        return vectors, [(~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)]


class ImageEmbedding(nn.Module):
    """Cells of four neighbouring patches to tokens: patch embedding with positions, pixel shuffle, perceptron."""

    def __init__(self, patch: int, cells: int, dim: int, width: int):
        """patch: side in pixels. cells: of a tile. dim, width: channels of a patch, and of a token."""
        super().__init__()
        self.patch = patch
        self.patches = nn.Linear(3 * patch**2, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(cells, 4, dim))
        last = nn.Linear(width, width)
        self.project = nn.Sequential(nn.LayerNorm(4 * dim), nn.Linear(4 * dim, width), nn.GELU(), last)
        nn.init.normal_(last.weight, std=0.02)  # as short as the vectors of words, or the blocks would hardly turn them
        nn.init.zeros_(last.bias)

    def forward(self, cells: Float[Tensor, "places values"]) -> Float[Tensor, "places width"]:
        """cells: the pixels of whole tiles, one after the other."""
        four = patchify(unpatchify(cells[:, None], 2 * self.patch), self.patch)
        placed = self.patches(four).unflatten(0, (-1, len(self.positions))) + self.positions
        return self.project(placed.flatten(2).flatten(0, 1))


@dataclass(frozen=True)
class ConversationRecipe(Optimisation):
    """A language model that reads and writes conversations about pictures, or documents with them."""

    language_model: LanguageModelConfig = LanguageModelConfig()

    def fitted(self, corpora: Sequence[Corpus], image: PictureColumn) -> ConversationProcessor:
        """A processor that learns words and colours on these corpora. image: what is known of pictures beforehand."""
        return ConversationProcessor.fit(corpora, self._learn_words, image, self.language_model.context)

    def _learn_words(self, texts: Iterable[str]) -> Tokenizer:
        return self.language_model.tokenizer(texts, MARKS)

    def load_processor(self, directory: Path) -> ConversationProcessor:
        tokenizer = self.language_model.load_tokenizer(directory)
        return ConversationProcessor.load(directory, tokenizer, self.language_model.context)


@dataclass(frozen=True)
class MonolithRecipe(ConversationRecipe):
    """A language model that sees through an embedding of patches and, if wanted, perceptrons for pictures."""

    tile: Count = 96
    """Side of a tile in pixels."""
    patch: Count = 8
    """Side of a patch in pixels; four patches become one token."""
    patch_width: Count = 64
    """Channels of a patch."""
    visual_experts: bool = True
    """Whether picture tokens have perceptrons of their own; without, they share those of the text."""

    @property
    def cells(self) -> int:
        """Tokens of a tile."""
        return (self.tile // (2 * self.patch)) ** 2

    def pictures(self, tiles: int, most_tiles: int) -> PictureColumn:
        """tiles: of a picture, unless a batch says else, which may have `most_tiles`."""
        return PictureColumn(self.tile, 2 * self.patch, tiles, self.tile * most_tiles)

    def build(self, processor: ConversationProcessor) -> MultimodalLanguageModel:
        embedding = ImageEmbedding(self.patch, self.cells, self.patch_width, self.language_model.width)
        experts = (TEXT, IMAGE) if self.visual_experts else (TEXT,)
        language_model = self.language_model.build(processor.tokenizer.vocabulary, experts)
        return MultimodalLanguageModel(language_model, embedding, processor.end, self.visual_experts)
