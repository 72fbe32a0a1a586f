"""Encoders of an image, a text, or both into one space; and two towers whose vectors are fused by a sum or a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.encoder import Encoder
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.transformer import Transformer
from polymodal.modalities.text import Tokens
from polymodal.objectives.contrastive import siglip_loss


class SidesBatch(TypedDict):
    """The sides of pairs, all left ones before all right ones. image: of the sides that have one, in their order.

    text: of every side; start and end token alone where there is none.
    """

    image: Float[Tensor, "images 3 size size"]
    has_image: Bool[Tensor, " sides"]
    text: Tokens


class PairBatch(SidesBatch):
    """Sides of pairs, and the image codes and text tokens that are masked."""

    masked_codes: Bool[Tensor, "images codes"]
    masked_text: Bool[Tensor, "sides length"]


class PairEncoder(nn.Module):
    """Embeds an image, a text, or both, and compares left and right sides of pairs by the sigmoid loss."""

    validation_task = "composed_retrieval"

    def __init__(self, marks: tuple[int, int], logit_scale_init: float, logit_bias_init: float):
        """marks: start and end token, which are an empty text."""
        super().__init__()
        self.marks = marks
        self.logit_scale = LogitScale(logit_scale_init, None)
        self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias_init)))

    def encode_sides(self, batch: SidesBatch) -> Float[Tensor, "sides dim"]:
        """L2-normalized vectors of all sides."""
        raise NotImplementedError

    def embed(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """L2-normalized vectors of images alone, and of texts alone."""
        results = {}
        if "image" in batch:
            image = batch["image"]
            has_image = torch.ones(len(image), dtype=torch.bool, device=image.device)
            results["image"] = self.encode_sides({"image": image, "has_image": has_image, "text": self._empty(image)})
        if "text" in batch:
            text = batch["text"]
            none = torch.zeros((0, 3, 1, 1), device=text.ids.device)
            results["text"] = self.encode_sides(
                {"image": none, "has_image": torch.zeros_like(text.lengths, dtype=torch.bool), "text": text}
            )
        return results

    def embed_composed(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        """L2-normalized vectors of images, each with its text."""
        has_image = torch.ones_like(batch["text"].lengths, dtype=torch.bool)
        return self.encode_sides({"image": batch["image"], "has_image": has_image, "text": batch["text"]})

    def contrast(self, sides: Float[Tensor, "sides dim"]) -> Float[Tensor, ""]:
        """Sigmoid loss of left against right sides."""
        left, right = sides.chunk(2)
        return siglip_loss(left, right, self.logit_scale(), self.logit_bias)

    def contrastive_losses(self, batch: SidesBatch) -> dict[str, Tensor]:
        """sigmoid: of left and right sides."""
        return {"sigmoid": self.contrast(self.encode_sides(batch))}

    def _empty(self, image: Tensor) -> Tokens:
        ids = torch.tensor([self.marks], device=image.device).repeat(len(image), 1)
        return Tokens(ids, torch.full((len(image),), 2, device=image.device))


class FusionModule(nn.Module):
    """Transformer over the vectors of image and text as two tokens, attention pooling by one query, and layer norm.

    The module of MagicLens (Zhang et al. 2024), as FuseLIP's released baseline has it.
    """

    def __init__(self, width: int, depth: int, num_heads: int):
        super().__init__()
        self.transformer = Transformer(width, depth, num_heads)
        self.query = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Float[Tensor, "batch width"], text: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch width"]:
        x = self.transformer(torch.stack([image, text], dim=1))
        query = self.query.expand(len(x), -1, -1)
        return self.norm(self.attention(query, x, x, need_weights=False)[0]).squeeze(1)


class LateFusion(PairEncoder):
    """Two towers; the vectors of an image and of a text are fused at the end.

    fusion: a `FusionModule` of un-normalized vectors (MLF), or None for the sum of normalized ones (score fusion, SF).
    A missing image has the vector 0; a missing text is encoded as an empty one, as in the released code.
    """

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        fusion: FusionModule | None,
        marks: tuple[int, int],
        logit_scale_init: float,
        logit_bias_init: float,
    ):
        super().__init__(marks, logit_scale_init, logit_bias_init)
        self.image_encoder, self.text_encoder, self.fusion = image_encoder, text_encoder, fusion

    def encode_sides(self, batch: SidesBatch) -> Float[Tensor, "sides dim"]:
        text = self.text_encoder.pooled(batch["text"])
        shown = self.image_encoder.pooled(batch["image"]) if len(batch["image"]) else text[:0]
        if self.fusion is None:
            text, shown = F.normalize(text, dim=-1), F.normalize(shown, dim=-1)
        image = torch.zeros_like(text)
        image[batch["has_image"]] = shown.to(image.dtype)
        return F.normalize(image + text if self.fusion is None else self.fusion(image, text), dim=-1)
