"""What the recipes of this family share: a decoder with pictures among its words, which is asked and which writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.conversation import IMAGE
from polymodal.data.sequence import TEXT, PackedSequences
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.layers.decoder import Routes
from polymodal.layers.decoding import Decoding
from polymodal.objectives.autoregressive import asked_places, next_token_losses, sum_by_sequence
from polymodal.types import Batch


class MultimodalLanguageModel(nn.Module):
    """A language model that reads the tokens of pictures among its own."""

    def __init__(
        self,
        language_model: LanguageModelConfig,
        image_encoder: nn.Module,
        vocabulary: int,
        end: int,
        experts: Sequence[str] = (TEXT,),
    ):
        """image_encoder: the cells of all tiles, one after the other, to as many tokens. end: the mark after an answer.

        experts: modalities with a perceptron each in every block of the language model, text first.
        """
        super().__init__()
        self.image_encoder = image_encoder
        self.language_model = language_model.build(vocabulary, experts)
        self.end = end

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
        flat = pictured.flatten()
        return vectors, [(~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)]
