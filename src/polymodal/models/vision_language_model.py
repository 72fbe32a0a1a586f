"""Vision-language model: encoder, connector, causal language model (LLaVA, Liu et al. 2023; InternVL, Open-Qwen2VL).

Tokens of images are spliced into packed sequences in the positions of their modality; the loss is that of the positions
marked as predicted, which are the answers. Any other modality with an encoder is spliced in the same way, and an
encoder may be as little as a patch embedding (Mono-InternVL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.data.sequence import TEXT, PackedSequences, PromptBatch, SequenceBatch
from polymodal.errors import UserError
from polymodal.layers.decoder import ExpertAssignment
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import unpatchify
from polymodal.models.connector import Connector, ConnectorConfig
from polymodal.objectives.autoregressive import next_token_losses, prediction_positions, segment_sum
from polymodal.objectives.reduction import global_mean, mean_over
from polymodal.types import Batch

LossReduction = Literal["token", "sample", "square"]
EXPONENTS: Mapping[str, float] = {"token": 0.0, "square": 0.5, "sample": 1.0}


@dataclass(frozen=True)
class VisionLanguageModelConfig:
    """What a vision-language model has beside its encoder and its language model."""

    connector: ConnectorConfig = ConnectorConfig("pixel_shuffle")
    """From patches to tokens of the language model."""
    loss_reduction: LossReduction = "token"
    """Weight of a token in the mean: token: all alike; sample: 1 / n in a sample of n predicted tokens, so that samples
    are alike; square: 1 / sqrt(n) (InternVL 2.5 and 3, released code)."""

    def build(self, encoder: Any, language_model: Any, end: int, experts: Sequence[str] = ()) -> VisionLanguageModel:
        """With one encoder, of images. Encoder and language model have a configuration with their width; see
        `vision_tokens` and `VisionLanguageModel`."""
        tokens = vision_tokens(encoder, self.connector, language_model.config.width)
        return VisionLanguageModel({"image": tokens}, language_model, end, self.loss_reduction, experts)


class TokenLosses(NamedTuple):
    """-log p of every predicted token, its row, and the sample that it is of: a number from 0 for every sequence."""

    nats: Float[Tensor, " predicted"]
    rows: Int[Tensor, " predicted"]
    samples: Int[Tensor, " predicted"]


def token_weights(samples: Int[Tensor, " predicted"], average: LossReduction = "token") -> Float[Tensor, " predicted"]:
    """The weight of each predicted token: n^-a in a sample of n tokens, with a = 0 (token), 1 (sample) or 0.5 (square)
    (InternVL 2.5 and 3)."""
    counts = torch.bincount(samples, minlength=1).float()
    return counts[samples] ** -EXPONENTS[average]


def reduce_token_losses(
    nats: Float[Tensor, " predicted"], samples: Int[Tensor, " predicted"], average: LossReduction = "token"
) -> Float[Tensor, ""]:
    """The mean of token losses over all processes, weighted by `token_weights`; 0 where nothing is predicted."""
    weights = token_weights(samples, average).to(nats.dtype)
    return global_mean((weights * nats).sum(), weights.sum())


class VisionTokens(nn.Module):
    """Image encoder and connector: from images, or their cells, to tokens of the language model's width."""

    def __init__(self, encoder: nn.Module, connector: Connector, tokens_per_tile: int):
        """encoder: an `Encoder` whose first output has the tokens of a square grid of patches, row-major.

        tokens_per_tile: output tokens of an image, `ConnectorConfig.num_tokens` of the grid.
        """
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.tokens_per_tile = tokens_per_tile

    def forward(
        self, images: Float[Tensor, "tiles 3 size size"] | Float[Tensor, "positions values"]
    ) -> Float[Tensor, "tokens width"]:
        """images: normalized pixels, or those of square cells, as many per image as it has tokens, row-major.

        Cells are what packed sequences carry (`data.conversation`): one for every position. The tokens of all images
        follow each other.
        """
        if images.ndim == 2:
            cell = math.isqrt(images.shape[1] // 3)
            images = unpatchify(images.unflatten(0, (-1, self.tokens_per_tile)), cell)
        patches = self.encoder(images)[0]
        side = math.isqrt(patches.shape[1])
        return self.connector(patches, (side, side)).flatten(0, 1)


def vision_tokens(encoder: Any, config: ConnectorConfig, out_width: int, grid: int | None = None) -> VisionTokens:
    """Encoder and connector for a language model of a width.

    encoder: one whose configuration has its `width`. grid: side of its grid of patches, by default `encoder.grid`.
    """
    side = encoder.grid if grid is None else grid
    return VisionTokens(encoder, config.build(encoder.config.width, out_width), config.num_tokens((side, side)))


class VisionLanguageModel(nn.Module):
    """A causal language model that reads tokens of other modalities among its own."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        language_model: nn.Module,
        end: int,
        loss_reduction: LossReduction = "token",
        experts: Sequence[str] = (),
    ):
        """encoders: by modality, each from its features to as many vectors of the language model's width as there are
        positions of the modality, such as `VisionTokens`; that of NAME is the submodule `NAME_encoder`.

        language_model: a `LanguageModel`, or a pretrained one. end: the token after an answer. experts: modalities
        beside text that have MLPs of their own in the language model, in its order.
        """
        super().__init__()
        self.encoded = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(f"{name}_encoder", encoder)
        self.language_model: Any = language_model
        self.end = end
        self.loss_reduction: LossReduction = loss_reduction
        self.experts = tuple(experts)

    def loss_counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """The weights of all predicted tokens together."""
        return {"lm": token_weights(self.predictions(batch["sequences"])[2], self.loss_reduction).sum()}

    @mean_over("loss_counts")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """`lm`: -log p of the predicted tokens, averaged as configured."""
        losses = self.token_losses(batch)
        return {"lm": reduce_token_losses(losses.nats, losses.samples, self.loss_reduction)}

    def copy_experts(self) -> None:
        """Initialize the MLPs of every modality with those of text."""
        self.language_model.copy_experts(TEXT)

    def log_likelihood(self, batch: SequenceBatch) -> Float[Tensor, " batch"]:
        """The log-probability of each row's predicted tokens; a row has one sequence."""
        losses = self.token_losses(batch)
        return -segment_sum(losses.nats, losses.rows, len(batch["sequences"]))

    def generate_text(
        self, batch: PromptBatch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Continuations of the `prompts` of a batch, which end in the last column, without the end token."""
        prompts = batch["prompts"]
        vectors, routes = self.embed_sequences(prompts, batch)
        return self.language_model.generate(
            vectors, prompts.position, prompts.document, routes, self.end, decoding or Decoding(), generator
        )

    def token_losses(self, batch: SequenceBatch) -> TokenLosses:
        """Of all predicted tokens of the `sequences` of a batch."""
        sequences = batch["sequences"]
        states = self.hidden_states(batch)
        rows, positions, samples = self.predictions(sequences)
        logits = self.language_model.logits(states[rows, positions - 1])  # of these alone: the vocabulary is wide
        nats = next_token_losses(logits, sequences.ids[rows, positions])
        return TokenLosses(nats, rows, samples)

    @staticmethod
    def predictions(
        sequences: PackedSequences,
    ) -> tuple[Int[Tensor, " predicted"], Int[Tensor, " predicted"], Int[Tensor, " predicted"]]:
        """Row, column and sample of every predicted token."""
        rows, positions = prediction_positions(sequences.document, sequences.predicted)
        samples = rows * (int(sequences.document.max()) + 1) + sequences.document[rows, positions]
        return rows, positions, samples

    def hidden_states(self, batch: SequenceBatch) -> Float[Tensor, "rows length width"]:
        """Last states of all positions of the `sequences` of a batch."""
        sequences = batch["sequences"]
        vectors, routes = self.embed_sequences(sequences, batch)
        return self.language_model(vectors, sequences.position, sequences.document, routes)

    def embed_sequences(
        self, sequences: PackedSequences, batch: Batch
    ) -> tuple[Float[Tensor, "rows length width"], ExpertAssignment | None]:
        """Embeddings of all positions, with the tokens of other modalities spliced in, and the routes to experts.

        Features of a modality come from `batch[NAME]`, such as the tiles of all images in reading order, or from the
        sequences. Raises UserError where they are not as many as the positions.
        """
        vectors = self.language_model.embedding(sequences.ids)
        for name in self.encoded:
            features = batch[name] if name in batch else sequences.features.get(name)
            if features is None or name not in sequences.modalities:
                continue
            positions = sequences.of(name)
            tokens = self.get_submodule(f"{name}_encoder")(features)
            if len(tokens) != int(positions.sum()):
                raise UserError(
                    f"{len(tokens)} tokens of {name} do not fill the {int(positions.sum())} positions of the sequences."
                )
            vectors = vectors.masked_scatter(positions[..., None], tokens.to(vectors.dtype))
        return vectors, self._routes(sequences)

    def _routes(self, sequences: PackedSequences) -> ExpertAssignment | None:
        """By expert, the flat indices of its positions; text has all that are of no other expert."""
        if not self.experts:
            return None
        nowhere = torch.zeros_like(sequences.predicted)
        of = [sequences.of(name) if name in sequences.modalities else nowhere for name in self.experts]
        text = ~torch.stack(of).any(0)
        return [mask.flatten().nonzero().squeeze(1) for mask in (text, *of)]


def freeze(module: nn.Module, *patterns: str) -> list[str]:
    """Stop training the parameters whose names match a shell pattern, such as `image_encoder.encoder.*`.

    Returns their names. Raises UserError for a pattern that matches none.
    """
    named = dict(module.named_parameters())
    frozen = []
    for pattern in patterns:
        matching = [name for name in named if fnmatchcase(name, pattern)]
        if not matching:
            raise UserError(f"No parameter's name matches '{pattern}'.")
        for name in matching:
            named[name].requires_grad_(False)
        frozen += matching
    return frozen
