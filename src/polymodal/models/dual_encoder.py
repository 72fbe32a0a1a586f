"""Dual encoder: one encoder per modality, projected into one embedding space and compared by inner product.

CLIP (Radford et al. 2021, section 2.3 and figure 3) for any two or more modalities; with a logit bias, SigLIP (Zhai et
al. 2023, algorithm 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveFloat, PositiveInt
from polymodal.encoders.encoder import Encoder
from polymodal.errors import UserError
from polymodal.layers.logit_scale import CLIP_INIT, CLIP_MAX, LogitScale
from polymodal.layers.projection_head import LinearProjection, ProjectionHead
from polymodal.layers.transformer import Packing
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.objectives.contrastive import info_nce, siglip_loss
from polymodal.types import Batch


class ImageTextBatch(TypedDict):
    """Pairs of an image and a text."""

    image: Float[Tensor, "batch 3 size size"]
    text: Tokens


@dataclass(frozen=True)
class DualEncoderConfig:
    """The embedding space of a dual encoder."""

    embed_dim: PositiveInt = 128
    """Dimensions of the embedding space."""
    projection: Literal["linear", "mlp", "identity"] = "linear"
    """Projection head of every encoder: a linear layer without bias (CLIP), an MLP with one GELU layer of the encoder's
    width, or none, which needs encoders of width `embed_dim` (SigLIP)."""
    logit_scale_init: PositiveFloat = CLIP_INIT
    """Logit scale (inverse temperature) at the start."""
    logit_scale_max: PositiveFloat | None = CLIP_MAX
    """Upper bound of the logit scale, held after every step (CLIP, section 2.5); None: no bound (SigLIP)."""
    logit_bias_init: float | None = None
    """Logit bias at the start, -10 in SigLIP; None: no bias, and InfoNCE in place of the sigmoid loss."""


class TokenEmbeddings(NamedTuple):
    """Projected tokens, which are not normalized, their mask (False for padding), and the L2-normalized embedding."""

    tokens: Float[Tensor, "batch length dim"]
    mask: Bool[Tensor, "batch length"]
    pooled: Float[Tensor, "batch dim"]


class DualEncoderModel(nn.Module):
    """Encoders by modality name, each with a projection head into one space, and a logit scale.

    Encoder and head of a modality NAME are the submodules `NAME_encoder` and `NAME_projection`. Encoders may share
    weights: the same module given for two names is trained once. A subclass that compares other pairs, or has another
    loss, overrides `encode` or `contrastive_losses`.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        config: DualEncoderConfig = DualEncoderConfig(),
        widths: Mapping[str, int] | None = None,
    ):
        """encoders: by modality, in the order in which pairs are named. widths: of the pooled vectors, where they are
        neither `config.pooled_width` nor `config.width` of the encoder.

        Raises UserError for fewer than two encoders, and for a width that `projection="identity"` cannot take.
        """
        super().__init__()
        if len(encoders) < 2:
            raise UserError("A dual encoder needs encoders of two modalities at least.")
        self.config = config
        self.modalities = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(f"{name}_encoder", encoder)
        for name, encoder in encoders.items():
            width = (widths or {}).get(name) or _pooled_width(encoder)
            self.add_module(f"{name}_projection", _projection(config.projection, width, config.embed_dim))
        self.logit_scale = LogitScale(config.logit_scale_init, config.logit_scale_max)
        bias = config.logit_bias_init
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_modality(self, name: str, value: Any) -> Float[Tensor, "batch dim"]:
        """L2-normalized embeddings of a modality. Raises UserError for one without an encoder."""
        encoder, projection = self._parts(name)
        return F.normalize(projection(encoder.pooled(value)), dim=-1)

    def encode_image(self, image: Any) -> Float[Tensor, "batch dim"]:
        return self.encode_modality("image", image)

    def encode_text(self, text: Any) -> Float[Tensor, "batch dim"]:
        return self.encode_modality("text", text)

    def encode_video(self, video: Any) -> Float[Tensor, "batch dim"]:
        return self.encode_modality("video", video)

    def encode_audio(self, audio: Any) -> Float[Tensor, "batch dim"]:
        return self.encode_modality("audio", audio)

    def encode_points(self, points: Any) -> Float[Tensor, "batch dim"]:
        return self.encode_modality("points", points)

    def encode_tokens(self, name: str, value: Any) -> TokenEmbeddings:
        """Projected tokens of a modality beside its embedding, in one forward pass; for losses of patches and words.

        Encoders return tokens dense, `Padded`, or packed with their `Packing`; all come out padded.
        """
        encoder, projection = self._parts(name)
        tokens, *packing, pooled = encoder(value)
        embedding = F.normalize(projection(pooled), dim=-1)
        if packing and isinstance(packing[0], Packing):
            return TokenEmbeddings(packing[0].pad(projection(tokens)), packing[0].mask, embedding)
        if isinstance(tokens, Padded):
            return TokenEmbeddings(projection(tokens.values), tokens.mask, embedding)
        return TokenEmbeddings(projection(tokens), tokens.new_ones(tokens.shape[:2], dtype=torch.bool), embedding)

    def encode_patches(self, image: Any) -> Float[Tensor, "batch patches dim"]:
        """L2-normalized embeddings of all patches of images, in the space of the other modalities."""
        return F.normalize(self.encode_tokens("image", image).tokens, dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalized embeddings of the modalities that the batch has."""
        return {name: self.encode_modality(name, batch[name]) for name in self.modalities if name in batch}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """What `contrastive_losses` compares: one row per example."""
        return self.embed(batch)

    def logits(self, a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
        """Scaled similarities of L2-normalized embeddings, with the logit bias where there is one."""
        similarity = self.logit_scale() * a @ b.T
        return similarity if self.logit_bias is None else similarity + self.logit_bias

    def zero_shot_probabilities(
        self, a: Float[Tensor, "rows dim"], classes: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, "rows classes"]:
        """Probabilities of classes, which are given by their embeddings: a softmax over the classes (CLIP, section
        3.1.2), and with a logit bias each class by itself, as in the sigmoid loss (SigLIP, algorithm 1)."""
        logits = self.logits(a, classes)
        return logits.softmax(-1) if self.logit_bias is None else logits.sigmoid()

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of every pair of modalities of the batch, named such as `image_text`."""
        losses = {}
        for a, b in itertools.combinations([name for name in self.modalities if name in encoded], 2):
            if self.logit_bias is None:
                loss = info_nce(encoded[a], encoded[b], self.logit_scale())
            else:
                loss = siglip_loss(encoded[a], encoded[b], self.logit_scale(), self.logit_bias)
            losses[f"{a}_{b}"] = loss
        return losses

    def losses(self, batch: Any) -> dict[str, Tensor]:
        return self.contrastive_losses(self.encode(batch))

    def _parts(self, name: str) -> tuple[Any, nn.Module]:
        if name not in self.modalities:
            raise UserError(f"There is no encoder of {name} here, only of {', '.join(self.modalities)}.")
        return self.get_submodule(f"{name}_encoder"), self.get_submodule(f"{name}_projection")


def _projection(kind: Literal["linear", "mlp", "identity"], width: int, embed_dim: int) -> nn.Module:
    """From an encoder's width to the embedding space. Raises UserError for an identity between different widths."""
    if kind == "linear":
        return LinearProjection(width, embed_dim)
    if kind == "mlp":
        return ProjectionHead([width, width, embed_dim], norm=None, activation="gelu", bias=True)
    if width != embed_dim:
        raise UserError(f"Without a projection head, an encoder of width {width} needs an embed_dim of {width}.")
    return nn.Identity()


def _pooled_width(encoder: Any) -> int:
    config = encoder.config
    return getattr(config, "pooled_width", None) or config.width
