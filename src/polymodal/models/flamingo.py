"""Flamingo: a frozen language model reads images through gated cross-attention between its blocks.

Alayrac et al. 2022, section 2 and figure 3. Images have one placeholder each in the text, and their tokens, resampled
to a fixed number, are keys and values of the gated blocks. OpenFlamingo (Awadalla et al. 2023) has one before every
fourth block, COSMO (2024) in the upper half only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.data.sequence import PackedSequences, PromptBatch, SequenceBatch
from polymodal.errors import UserError
from polymodal.layers.cross_attention import KeyValue
from polymodal.layers.decoder import ExpertAssignment
from polymodal.layers.decoding import Decoding
from polymodal.layers.gated_cross_attention import GatedCrossAttention, media_attention_mask, repeat_mask
from polymodal.layers.perceiver_resampler import PerceiverResampler
from polymodal.models.vision_language_model import LossReduction, VisionLanguageModel
from polymodal.types import Batch


@dataclass(frozen=True)
class FlamingoConfig:
    """What Flamingo puts between an image encoder and a language model."""

    num_latents: PositiveInt = 64
    """Tokens of an image after the resampler."""
    resampler_depth: PositiveInt = 2
    """Layers of the resampler; 6 in the paper."""
    num_heads: PositiveInt = 4
    """Attention heads of resampler and gated blocks; 8 in the paper."""
    cross_attn_every_n_layers: PositiveInt = 1
    """A gated block stands before every so many blocks of the language model."""
    unimodal_depth: NonNegativeInt = 0
    """First blocks of the language model without any, which encode text alone (COSMO)."""
    mlp_ratio: float = 4.0
    """Width inside the MLP of a gated block, relative to that of the language model."""
    attend: Literal["last", "all"] = "last"
    """Whether text reads the last image before it (section 2.3), or all of them."""
    loss_reduction: LossReduction = "token"
    """See `VisionLanguageModelConfig`."""

    def build(self, encoder: Any, language_model: Any, end: int) -> Flamingo:
        """encoder: one whose configuration has its `width`. language_model: a `LanguageModel`, with its weights."""
        return Flamingo(self, encoder, language_model, end)


class GatedDecoderBlock(nn.Module):
    """A block of the language model behind gated cross-attention to the images that `condition` was given."""

    def __init__(self, block: nn.Module, gated: GatedCrossAttention):
        super().__init__()
        self.block = block
        self.gated = gated
        self.media: KeyValue | None = None
        self.mask: Bool[Tensor, "batch length keys"] | None = None

    def condition(
        self,
        media: Float[Tensor, "batch media tokens width"] | None,
        mask: Bool[Tensor, "batch length media"] | None = None,
    ) -> None:
        """Project the images of every row once; None for no images."""
        if media is None:
            self.media = self.mask = None
        else:
            self.media = self.gated.attention.project(media.flatten(1, 2))
            self.mask = repeat_mask(mask, media.shape[2])

    def forward(self, x: Float[Tensor, "batch length width"], *decoding: Any) -> Float[Tensor, "batch length width"]:
        """decoding: what the block takes beside x.

        New tokens after a prompt read what its last token reads; rows may be repeated, one for every beam.
        """
        media, mask = self.media, self.mask
        if media is not None and mask is not None:
            if x.shape[1] < mask.shape[1]:
                mask = mask[:, -1:]
            if (beams := len(x) // len(mask)) > 1:
                rows = torch.arange(len(mask), device=x.device).repeat_interleave(beams)
                media, mask = media.select(rows), mask[rows]
        return self.block(self.gated.attend(x, media, mask), *decoding)


class Flamingo(VisionLanguageModel):
    """Image encoder, resampler, and the language model with gated blocks, which alone learn beside the resampler.

    Image encoder and language model are frozen here; a stage may train them again. At the start the model gives the
    logits of its language model, whatever the images.
    """

    def __init__(self, config: FlamingoConfig, encoder: Any, language_model: Any, end: int):
        super().__init__({}, language_model, end, config.loss_reduction)
        self.config = config
        self.image_encoder = encoder
        width = encoder.config.width
        self.resampler = PerceiverResampler(width, config.resampler_depth, config.num_heads, config.num_latents)
        encoder.requires_grad_(False)
        language_model.requires_grad_(False)
        blocks = language_model.decoder.blocks
        for index in range(config.unimodal_depth, len(blocks), config.cross_attn_every_n_layers):
            gated = GatedCrossAttention(
                language_model.config.width, config.num_heads, width, mlp_ratio=config.mlp_ratio
            )
            blocks[index] = GatedDecoderBlock(blocks[index], gated)

    def hidden_states(self, batch: SequenceBatch) -> Float[Tensor, "rows length width"]:
        with self._conditioned(batch["sequences"], batch):
            return super().hidden_states(batch)

    def generate_text(
        self, batch: PromptBatch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Continuations of the `prompts` of a batch; the images of a prompt are all before its end."""
        with torch.no_grad(), self._conditioned(batch["prompts"], batch):
            return super().generate_text(batch, decoding, generator)

    def embed_sequences(
        self, sequences: PackedSequences, batch: Batch
    ) -> tuple[Float[Tensor, "rows length width"], ExpertAssignment | None]:
        """Embeddings of all tokens; placeholders are tokens like others."""
        return self.language_model.embedding(sequences.ids), None

    def encode_media(
        self, images: Float[Tensor, "images 3 size size"] | Float[Tensor, "images frames 3 size size"]
    ) -> Float[Tensor, "images latents width"]:
        """Resampled tokens of every image, or of every video."""
        if images.ndim == 4:
            return self.resampler(self.image_encoder(images)[0])
        tokens = self.image_encoder(images.flatten(0, 1))[0]
        return self.resampler(tokens.unflatten(0, images.shape[:2]))

    @contextlib.contextmanager
    def _conditioned(self, sequences: PackedSequences, batch: Batch) -> Iterator[None]:
        """Within it, gated blocks read `batch["image"]`: all images of the sequences, in reading order of their
        placeholders, which are the positions of the modality `image`, one each."""
        blocks = [block for block in self.language_model.decoder.blocks if isinstance(block, GatedDecoderBlock)]
        media = None
        if "image" in sequences.modalities:
            positions = sequences.of("image")
            tokens, counts = self.encode_media(batch["image"]), positions.sum(1)
            if len(tokens) != int(counts.sum()):
                raise UserError(f"{len(tokens)} images do not fit {int(counts.sum())} placeholders in the sequences.")
            most = int(counts.max())
            there = torch.arange(most, device=tokens.device) < counts[:, None]
            media = tokens.new_zeros(len(positions), most, *tokens.shape[1:])
            media = media.masked_scatter(there[..., None, None], tokens)
            mask = media_attention_mask(positions, most, self.config.attend, sequences.document)
        try:
            for block in blocks:
                block.condition(media, None if media is None else mask & there[:, None])
            yield
        finally:
            for block in blocks:
                block.condition(None)
