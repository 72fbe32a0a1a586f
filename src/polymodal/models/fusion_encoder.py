"""Fusion encoder: text and image read each other, by cross-attention, co-attention or merged attention.

METER (Dou et al. 2022a) compares the last two; ALBEF (Li et al. 2021, section 3.1) and BLIP (Li et al. 2022, section
3.1) have cross-attention in their text encoder; FIBER (Dou et al. 2022b) gates co-attention inside both backbones, so
that without it they are a dual encoder.

Masks are True for tokens and False for padding. Padding is attended to by no token, so that it changes nothing but the
outputs in its own positions, which have no meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttention, CrossAttentionBlock, causal_mask, init_transformer

Fusion = Literal["cross_attention", "co_attention", "merged_attention"]


@dataclass(frozen=True)
class FusionEncoderConfig:
    """A fusion encoder."""

    fusion: Fusion = "cross_attention"
    """cross_attention: text reads the image, which stays as it is (ALBEF); co_attention: each reads the other in a
    stream of its own; merged_attention: one stream of both (METER)."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: PositiveInt = 2
    """Blocks."""
    fusion_depth: NonNegativeInt = 0
    """Last blocks that have cross-attention (6 of 12 in ALBEF's text encoder); 0: all."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    norm: Literal["pre", "post"] = "pre"
    """Whether branches are normalized before, or sums after them, as in BERT."""
    gated: bool = False
    """Whether cross-attention is multiplied by learned gates that are 0 at the start."""
    dropout: DecayRate = 0.0
    """After attention and MLPs."""

    def __post_init__(self) -> None:
        if self.fusion_depth > self.depth:
            raise UserError(f"A fusion_depth of {self.fusion_depth} is more than the depth of {self.depth} blocks.")
        if self.fusion == "merged_attention" and (self.fusion_depth or self.gated):
            raise UserError("merged_attention has no cross-attention; leave out fusion_depth and gated.")

    def block(self, index: int, context_width: int | None = None) -> CrossAttentionBlock:
        """The block of an index. context_width: of what it reads, by default the width."""
        crossing = self.fusion != "merged_attention" and index >= self.depth - (self.fusion_depth or self.depth)
        return CrossAttentionBlock(
            self.width, self.num_heads, context_width, None, self.norm, self.dropout, crossing, self.gated
        )

    def build(self, text_width: int, image_width: int) -> FusionEncoder:
        return FusionEncoder(self, text_width, image_width)


class Fused(NamedTuple):
    """Text and image after fusion; with cross_attention, the image is the projected one."""

    text: Float[Tensor, "batch length width"]
    image: Float[Tensor, "batch patches width"]


class FusionEncoder(nn.Module):
    """Projections of both modalities, type embeddings, and blocks."""

    def __init__(self, config: FusionEncoderConfig, text_width: int, image_width: int):
        """text_width, image_width: of the tokens that come in."""
        super().__init__()
        self.config = config
        self.text_projection = nn.Linear(text_width, config.width)
        self.image_projection = nn.Linear(image_width, config.width)
        self.type_embed = nn.Parameter(0.02 * torch.randn(2, config.width))
        self.text_blocks = nn.ModuleList(config.block(index) for index in range(config.depth))
        own_image = config.fusion == "co_attention"
        self.image_blocks = nn.ModuleList(config.block(index) for index in range(config.depth if own_image else 0))
        self.text_norm = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.image_norm = nn.LayerNorm(config.width) if config.norm == "pre" and own_image else nn.Identity()
        init_transformer(self)

    def forward(
        self,
        text: Float[Tensor, "batch length text_width"],
        text_mask: Bool[Tensor, "batch length"],
        image: Float[Tensor, "batch patches image_width"],
        image_mask: Bool[Tensor, "batch patches"] | None = None,
        fused: bool = True,
    ) -> Fused:
        """fused: whether there is cross-attention; without it, co_attention is a dual encoder (FIBER).

        Raises UserError for merged attention without fusion.
        """
        if image_mask is None:
            image_mask = text_mask.new_ones(image.shape[:2])
        x = self.text_projection(text) + self.type_embed[0]
        y = self.image_projection(image) + self.type_embed[1]
        if self.config.fusion == "merged_attention":
            if not fused:
                raise UserError("merged_attention cannot encode text and image apart.")
            x, mask = torch.cat([x, y], dim=1), torch.cat([text_mask, image_mask], dim=1)
            for block in self.text_blocks:
                x = block(x, mask=mask)
            x = self.text_norm(x)
            return Fused(x[:, : text.shape[1]], x[:, text.shape[1] :])
        if self.config.fusion == "cross_attention":
            for block in self.text_blocks:
                x = block(x, y if fused else None, text_mask, image_mask)
            return Fused(self.text_norm(x), y)
        for text_block, image_block in zip(self.text_blocks, self.image_blocks, strict=True):
            # Both read the outputs of the block before, not each other's new ones (METER).
            x, y = (
                text_block(x, y if fused else None, text_mask, image_mask),
                image_block(y, x if fused else None, image_mask, text_mask),
            )
        return Fused(self.text_norm(x), self.image_norm(y))


@dataclass(frozen=True)
class MultimodalTextEncoderConfig(FusionEncoderConfig):
    """A text encoder whose last blocks read an image."""

    vocab_size: PositiveInt = 8000
    """Entries of the tokenizer."""
    context_length: PositiveInt = 64
    """Longest text in tokens."""
    norm: Literal["pre", "post"] = "post"
    """Whether branches are normalized before, or sums after them, as in BERT."""
    causal_attention: bool = False
    """Whether causal self-attention has weights of its own, as in BLIP's decoder; all others are the encoder's, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fusion != "cross_attention":
            raise UserError("A text encoder reads an image by cross_attention only.")


class MultimodalTextEncoder(nn.Module):
    """BERT with cross-attention, ALBEF's and BLIP's: one module that encodes text alone, or together with an image.

    Where all blocks have cross-attention (BLIP), text alone goes through all of them without it; else (ALBEF) it goes
    through the lower ones, and the upper ones fuse what these gave.
    """

    def __init__(self, config: MultimodalTextEncoderConfig, image_width: int):
        """image_width: of the image tokens that come in."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Embedding(config.context_length, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(config.block(index, image_width) for index in range(config.depth))
        self.norm_post = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.lower = config.depth - (config.fusion_depth or config.depth)
        causal = config.depth if config.causal_attention else 0
        self.causal_attention = nn.ModuleList(CrossAttention(config.width, config.num_heads) for _ in range(causal))
        init_transformer(self)

    def encode_text(
        self,
        ids: Int[Tensor, "batch length"],
        text_mask: Bool[Tensor, "batch length"],
        causal: bool = False,
    ) -> Float[Tensor, "batch length width"]:
        """Text alone. causal: a token sees only those up to itself."""
        x, mask = self._embedded(ids, text_mask, causal)
        for index, block in enumerate(self.blocks[: self.lower or None]):
            x = block(x, mask=mask, self_attention=self._attention(index, causal))
        return self.norm_post(x) if not self.lower else x

    def fuse(
        self,
        text: Float[Tensor, "batch length width"],
        text_mask: Bool[Tensor, "batch length"],
        image: Float[Tensor, "batch patches image_width"],
        image_mask: Bool[Tensor, "batch patches"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch length width"]:
        """Text that `encode_text` gave together with an image, through the upper blocks (ALBEF).

        Raises UserError where all blocks have cross-attention, so that there are no lower ones.
        """
        if not self.lower:
            raise UserError("All blocks have cross-attention; give the tokens to forward, or set a fusion_depth.")
        mask = causal_mask(text_mask) if causal else text_mask
        for index, block in enumerate(self.blocks[self.lower :], start=self.lower):
            text = block(text, image, mask, image_mask, self_attention=self._attention(index, causal))
        return self.norm_post(text)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        text_mask: Bool[Tensor, "batch length"],
        image: Float[Tensor, "batch patches image_width"],
        image_mask: Bool[Tensor, "batch patches"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch length width"]:
        """Text together with an image, through all blocks."""
        x, mask = self._embedded(ids, text_mask, causal)
        for index, block in enumerate(self.blocks):
            x = block(x, image, mask, image_mask, self_attention=self._attention(index, causal))
        return self.norm_post(x)

    def _attention(self, index: int, causal: bool) -> CrossAttention | None:
        """The causal self-attention of a block, where it has weights of its own."""
        attention = self.causal_attention[index] if causal and self.config.causal_attention else None
        assert attention is None or isinstance(attention, CrossAttention)
        return attention

    def _embedded(self, ids: Tensor, text_mask: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """Embeddings of tokens and positions, and the mask of self-attention."""
        x = self.token_embedding(ids) + self.pos_embed(torch.arange(ids.shape[1], device=ids.device))
        return self.dropout(self.norm(x)), causal_mask(text_mask) if causal else text_mask
