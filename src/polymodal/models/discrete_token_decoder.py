"""One causal decoder over text tokens and discrete codes of other modalities (Chameleon, AnyGPT, MIO, MoMa).

A tokenizer per modality (VQ) turns images, speech ... into codes; all modalities share one vocabulary, each with its
offset in it. The decoder predicts the next token, whichever modality it is of (Chameleon, 2024, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeFloat
from polymodal.data.sequence import TEXT, PackedSequences, PromptBatch, SequenceBatch
from polymodal.errors import UserError
from polymodal.layers.decoder import ExpertAssignment
from polymodal.layers.decoding import Decoding, sample
from polymodal.layers.generation import generate_tokens
from polymodal.modalities.image import unpatchify
from polymodal.models.interleaved_writer import InterleavedWriter
from polymodal.models.joint_vocabulary import CodeFormat, JointVocabulary
from polymodal.objectives.autoregressive import next_token_losses, num_predicted, prediction_positions, segment_sum
from polymodal.objectives.reduction import global_mean, mean_over
from polymodal.types import Batch


@dataclass(frozen=True)
class DiscreteTokenDecoderConfig:
    """What a discrete-token decoder has beside its language model and tokenizers."""

    z_loss: NonNegativeFloat = 0.0
    """Weight of the mean squared log-partition function, which keeps logits from drifting (1e-5 in Chameleon)."""
    cfg_scale: NonNegativeFloat = 1.0
    """Classifier-free guidance of generated codes: 1 is none; it needs prompts without their condition."""


class GuidedPromptBatch(PromptBatch):
    """unconditional_prompts: the same rows without their condition, for classifier-free guidance."""

    unconditional_prompts: NotRequired[PackedSequences]


class CodeLosses(NamedTuple):
    """-log p of every predicted token, its row, the index of its modality, and its log-partition function."""

    nats: Float[Tensor, " predicted"]
    rows: Int[Tensor, " predicted"]
    modality: Int[Tensor, " predicted"]
    log_z: Float[Tensor, " predicted"]


class DiscreteTokenDecoder(nn.Module):
    """Tokenizers, and a language model of the joint vocabulary.

    Tokenizers are used without gradient; they learn only by `tokenizer_losses`.
    """

    def __init__(
        self,
        language_model: nn.Module,
        vocabulary: JointVocabulary,
        tokenizers: Mapping[str, nn.Module],
        formats: Mapping[str, CodeFormat],
        end: int,
        config: DiscreteTokenDecoderConfig = DiscreteTokenDecoderConfig(),
        experts: Sequence[str] = (),
    ):
        """language_model: a `LanguageModel` with `vocabulary.total` entries. tokenizers: by modality, each with
        `encode` (features to codes, a row per item) and `decode`; that of NAME is the submodule `NAME_tokenizer`. They
        may be fewer than the modalities where sequences hold codes already.

        formats: of every modality but text. end: the token after a document. experts: modalities beside text that have
        MLPs of their own in the language model, in its order. Raises UserError for a modality without a format.
        """
        super().__init__()
        lacking = [name for name in vocabulary.modalities if name != TEXT and name not in formats]
        if lacking:
            raise UserError(f"The codes of {lacking[0]} have no format: which tokens stand around how many of them?")
        self.language_model: Any = language_model
        self.vocabulary, self.formats, self.end, self.config = vocabulary, dict(formats), end, config
        self.experts = tuple(experts)
        self.tokenized = tuple(tokenizers)
        for name, tokenizer in tokenizers.items():
            self.add_module(f"{name}_tokenizer", tokenizer)

    def tokenizer(self, modality: str) -> Any:
        """The tokenizer of a modality. Raises UserError where there is none."""
        if modality not in self.tokenized:
            raise UserError(f"There is no tokenizer of {modality} here.")
        return self.get_submodule(f"{modality}_tokenizer")

    def tokenizer_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of the tokenizers of the modalities that the batch has."""
        return {
            f"{name}_{key}": loss
            for name in self.tokenized
            if name in batch
            for key, loss in self.tokenizer(name).losses(batch[name]).items()
        }

    def loss_counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Predicted tokens of all modalities together, for each loss."""
        count = num_predicted(batch["sequences"].document, batch["sequences"].predicted)
        return dict.fromkeys((*self.vocabulary.modalities, "z_loss"), count)

    @mean_over("loss_counts")
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """One loss per modality, which add up to the mean over all predicted tokens, and `z_loss` if it is weighted."""
        tokens = self.token_losses(batch)
        count = len(tokens.nats)
        losses = {
            name: global_mean(tokens.nats[tokens.modality == index].sum(), count)
            for index, name in enumerate(self.vocabulary.modalities)
        }
        if self.config.z_loss:
            losses["z_loss"] = self.config.z_loss * global_mean(tokens.log_z.square().sum(), count)
        return losses

    @property
    def vocab_sizes(self) -> Mapping[str, int]:
        """Entries of each modality, and of `all`."""
        return {**self.vocabulary.sizes, "all": self.vocabulary.total}

    def token_nll(self, batch: SequenceBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """By modality and of `all`: the sum of -log p over a row's predicted tokens, and how many there are."""
        tokens, rows = self.token_losses(batch), len(batch["sequences"])
        masks = {name: tokens.modality == index for index, name in enumerate(self.vocabulary.modalities)}
        masks["all"] = torch.ones_like(tokens.modality, dtype=torch.bool)
        one = torch.ones_like(tokens.nats)
        return {
            name: (
                segment_sum(tokens.nats[mask], tokens.rows[mask], rows),
                segment_sum(one[mask], tokens.rows[mask], rows),
            )
            for name, mask in masks.items()
        }

    def token_losses(self, batch: SequenceBatch) -> CodeLosses:
        """Of all predicted tokens of the `sequences` of a batch."""
        sequences = batch["sequences"]
        ids = self.token_ids(sequences)
        states = self._states(ids, sequences.position, sequences.document)
        rows, positions = prediction_positions(sequences.document, sequences.predicted)
        logits = self.language_model.logits(states[rows, positions - 1]).float()
        tokens = ids[rows, positions]
        modality = self.vocabulary.modality_of(tokens)
        return CodeLosses(next_token_losses(logits, tokens), rows, modality, logits.logsumexp(-1))

    @torch.no_grad()
    def token_ids(self, sequences: PackedSequences) -> Int[Tensor, "rows length"]:
        """Entries of the joint vocabulary in all positions: text as it is; codes with their offset.

        Codes come out of the sequences' features by the tokenizer, or are its ids of that modality.
        """
        ids = sequences.ids
        for name in sequences.modalities:
            if name == TEXT:
                continue
            positions = sequences.of(name)
            if name in sequences.features:
                codes = self._codes(name, sequences.features[name])
                ids = ids.masked_scatter(positions, self.vocabulary.encode(name, codes))
            else:
                ids = torch.where(positions, self.vocabulary.encode(name, ids), ids)
        return ids

    @torch.no_grad()
    def generate_text(
        self, batch: PromptBatch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Text that follows the `prompts` of a batch, without the end token; codes are impossible, and items are not
        begun."""
        decoding = decoding or Decoding()
        session = _Session(self, batch["prompts"], decoding.max_new_tokens)
        marks = [mark for form in self.formats.values() for mark in (form.begin, form.end)]

        def text(logits: Tensor) -> Tensor:
            return logits[:, self.vocabulary.slice_of(TEXT)].index_fill(
                1, torch.tensor(marks, device=logits.device), -torch.inf
            )

        def step(token: Tensor) -> Tensor:
            return text(session.step(token))

        return generate_tokens(text(session.logits), step, session.select, self.end, decoding, generator)

    @torch.no_grad()
    def generate_codes(
        self, batch: GuidedPromptBatch, modality: str, decoding: Decoding, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch codes"]:
        """The codes of one item of a modality that follow each of the `prompts`; nothing else is possible.

        With a `cfg_scale` other than 1, the batch has `unconditional_prompts`, as many as prompts, and the logits are
        u + cfg_scale * (c - u) for those c with the condition and u without it (Ho and Salimans 2022, equation 6).
        Raises UserError where they are missing.
        """
        scale, num_codes = self.config.cfg_scale, self.formats[modality].num_codes
        sessions = [_Session(self, batch["prompts"], num_codes)]
        if scale != 1:
            if "unconditional_prompts" not in batch:
                raise UserError("Guidance needs prompts without their condition; set cfg_scale to 1 to go without.")
            sessions.append(_Session(self, batch["unconditional_prompts"], num_codes))
        entries = self.vocabulary.slice_of(modality)
        codes: list[Tensor] = []
        while len(codes) < num_codes:
            if codes:
                for session in sessions:
                    session.step(self.vocabulary.encode(modality, codes[-1]))
            logits, *unconditional = (session.logits[:, entries] for session in sessions)
            if unconditional:
                logits = unconditional[0] + scale * (logits - unconditional[0])
            codes.append(sample(logits, decoding, generator))
        return torch.stack(codes, dim=1)

    def generate_items(
        self, batch: GuidedPromptBatch, modality: str, decoding: Decoding, generator: torch.Generator | None = None
    ) -> Tensor:
        """What the codes of `generate_codes` stand for, such as images."""
        return self.tokenizer(modality).decode(self.generate_codes(batch, modality, decoding, generator))

    @torch.no_grad()
    def generate_interleaved(
        self, batch: PromptBatch, decoding: Decoding, generator: torch.Generator | None = None
    ) -> list[list[tuple[str, list[int]]]]:
        """Text and items of other modalities in any order that follow each of the `prompts`.

        After a `begin` token only codes of its modality are possible, as many as an item has, then its `end`; elsewhere
        only text is. An item that would not fit into `max_new_tokens` is not begun. Returns stretches of a modality
        each, of text tokens (without `begin` and `end`) or codes. Raises UserError for beam search.
        """
        if decoding.num_beams > 1:
            raise UserError("Beam search is for text alone; sample interleaved sequences, or take the likeliest token.")
        session = _Session(self, batch["prompts"], decoding.max_new_tokens)
        writers = [InterleavedWriter(self.vocabulary, self.formats, self.end) for _ in range(len(session.logits))]
        for number in range(decoding.max_new_tokens):
            left = decoding.max_new_tokens - number
            allowed = torch.stack([writer.allowed(left, session.logits.device) for writer in writers])
            token = sample(session.logits.masked_fill(~allowed, -torch.inf), decoding, generator)
            for writer, entry in zip(writers, token.tolist(), strict=True):
                writer.add(entry)
            if all(writer.finished for writer in writers):
                break
            if left > 1:
                session.step(token)
        return [writer.stretches for writer in writers]

    def _codes(self, name: str, features: Tensor) -> Int[Tensor, " codes"]:
        """Codes of all items one after the other. Features of two axes are the cells of images, one per code."""
        if features.ndim == 2:
            cell = math.isqrt(features.shape[1] // 3)
            features = unpatchify(features.unflatten(0, (-1, self.formats[name].num_codes)), cell)
        return self.tokenizer(name).encode(features).flatten()

    def _states(self, ids: Tensor, position: Tensor, document: Tensor, cache: Any = None) -> Tensor:
        vectors = self.language_model.embedding(ids)
        return self.language_model(vectors, position, document, self._routes(ids, document), cache)

    def _routes(self, ids: Tensor, document: Tensor) -> ExpertAssignment:
        """By expert, the flat indices of its tokens; padding has none, and text those that are of no other expert."""
        modality, text = self.vocabulary.modality_of(ids), document > 0
        routes = []
        for name in self.experts:
            mask = (modality == self.vocabulary.modalities.index(name)) & (document > 0)
            routes.append(mask.flatten().nonzero().squeeze(1))
            text = text & ~mask
        return [text.flatten().nonzero().squeeze(1), *routes]


class _Session:
    """A cache of prompts, and the logits of what may follow them."""

    def __init__(self, model: DiscreteTokenDecoder, prompts: PackedSequences, new_tokens: int):
        self.model = model
        rows, length = prompts.position.shape
        self.cache = model.language_model.decoder.cache(rows, length + new_tokens)
        self.position, self.document = prompts.position[:, -1], prompts.document[:, -1:]
        self._advance(model.token_ids(prompts), prompts.position, prompts.document)

    def step(self, token: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Add a token to every row."""
        self.position = self.position + 1
        return self._advance(token[:, None], self.position[:, None], self.document)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        self.cache = self.cache.select(rows)
        self.position, self.document = self.position[rows], self.document[rows]

    def _advance(self, ids: Tensor, position: Tensor, document: Tensor) -> Tensor:
        states = self.model._states(ids, position, document, self.cache)
        self.logits: Tensor = self.model.language_model.logits(states[:, -1])
        return self.logits
