"""Fusion in the backbone: a Swin transformer and a RoBERTa whose last blocks read each other (FIBER, Dou et al. 2022).

With the gates off they are a dual encoder, with them on a fusion encoder (section 3.1). The two blocks of a pair are
updated in parallel: both read what the other had before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.constraints import ContextLength, DecayRate, PositiveInt
from polymodal.encoders.swin import SwinEncoder, SwinEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.cross_attention import init_transformer
from polymodal.layers.fusion_in_backbone import Context, GatedFusion, PostNormFusionBlock
from polymodal.layers.swin import FeatureMap
from polymodal.modalities.text import Tokens

Words = Float[Tensor, "batch length text_width"]


@dataclass(frozen=True)
class RobertaConfig:
    """Configuration of a text transformer with post-norm blocks (BERT, RoBERTa)."""

    vocab_size: PositiveInt = 8000
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    context_length: ContextLength = 40
    """Maximum sequence length in tokens, including start and end token; longer texts are truncated."""
    width: PositiveInt = 64
    """Channels of a token."""
    depth: PositiveInt = 4
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    dropout: DecayRate = 0.0
    """Dropout probability of embeddings and branches."""


def init_std(width: int) -> float:
    """Return 0.5 / sqrt(width): the 0.02 of BERT at its width, and as large outputs at smaller ones."""
    return 0.5 * width**-0.5


class RobertaEncoder(nn.Module):
    """Text transformer; its last token is the mask of masked language modeling."""

    def __init__(self, config: RobertaConfig, vocab_size: int):
        """vocab_size: entries of the tokenizer, without the mask token."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size + 1, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.norm_pre = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormFusionBlock(config.width, config.num_heads, 4 * config.width, config.dropout)
            for _ in range(config.depth)
        )
        init_transformer(self, init_std(config.width))

    def embedded(self, text: Tokens) -> tuple[Words, Bool[Tensor, "batch length"]]:
        """Return the input of the first block, and the mask: False for padding. Padding beyond the context is cut."""
        ids = text.ids[:, : self.config.context_length]
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return self.dropout(self.norm_pre(x)), text.mask[:, : ids.shape[1]]


class FusedStates(NamedTuple):
    """Tokens of both backbones after the last block, and the maps of all stages of the image backbone.

    Maps are (batch, rows, columns, width); the last one is not normalized.
    """

    words: Words
    maps: list[Float[Tensor, "batch _ _ _"]]

    @property
    def patches(self) -> Float[Tensor, "batch patches image_width"]:
        """The tokens of the last stage."""
        return self.maps[-1].flatten(1, 2)


class FusionInBackbone(nn.Module):
    """Both backbones, with cross-attention in their last `num_fuse_block` blocks."""

    def __init__(
        self,
        image: SwinEncoderConfig,
        text: RobertaConfig,
        vocab_size: int,
        num_fuse_block: int,
        alpha_init: float = 0.0,
    ):
        """num_fuse_block: pairs of blocks that read each other; 0: none. alpha_init: the gates at the start.

        Raises UserError where a backbone has fewer blocks.
        """
        super().__init__()
        if num_fuse_block > min(sum(image.depths), text.depth):
            raise UserError(f"{num_fuse_block} fused blocks are more than one of the backbones has.")
        self.image_encoder: SwinEncoder = image.build()
        self.text_encoder = RobertaEncoder(text, vocab_size)
        self.num_fuse_block = num_fuse_block
        places = [
            (block, width, heads)
            for blocks, width, heads in zip(self.image_encoder.blocks, image.widths, image.num_heads, strict=True)
            for block in blocks
        ]
        pairs = zip(places[len(places) - num_fuse_block :], self._fused_text_blocks(), strict=True)
        for (image_block, width, heads), text_block in pairs:
            image_block.fusion = GatedFusion(width, heads, text.width, norm=True, alpha_init=alpha_init)
            text_block.fusion = GatedFusion(
                text.width, text.num_heads, width, alpha_init=alpha_init, dropout=text.dropout
            )
            init_transformer(image_block.fusion, init_std(width))
            init_transformer(text_block.fusion, init_std(text.width))

    def _fused_text_blocks(self) -> list[PostNormFusionBlock]:
        blocks: list[Any] = list(self.text_encoder.blocks)
        return blocks[len(blocks) - self.num_fuse_block :]

    @property
    def first_fused(self) -> tuple[int, int]:
        """Stage and number of the first fused image block; without any, those after the last block."""
        start = sum(map(len, self.image_encoder.blocks)) - self.num_fuse_block
        for stage, blocks in enumerate(self.image_encoder.blocks):
            if start < len(blocks):
                return stage, start
            start -= len(blocks)
        return len(self.image_encoder.blocks) - 1, len(self.image_encoder.blocks[-1])

    def lower_image(
        self, image: Float[Tensor, "batch 3 size size"], window: int | None = None
    ) -> tuple[FeatureMap, list[Float[Tensor, "batch _ _ _"]]]:
        """Encode images up to the first fused block. Returns its input, and the maps of the stages before."""
        x, maps = self.image_encoder.embedded(image), []
        last_stage, last_block = self.first_fused
        for stage, blocks in enumerate(self.image_encoder.blocks[: last_stage + 1]):
            if stage:
                maps.append(x)
                x = self.image_encoder.merging[stage - 1](x)
            for block in blocks[: last_block if stage == last_stage else None]:
                x = block(x, window)
        return x, maps

    def lower_text(self, text: Tokens) -> tuple[Words, Bool[Tensor, "batch length"]]:
        """Encode texts up to the first fused block. Returns its input, and the mask: False for padding."""
        words, mask = self.text_encoder.embedded(text)
        for block in self.text_encoder.blocks[: len(self.text_encoder.blocks) - self.num_fuse_block]:
            words = block(words, mask)
        return words, mask

    def upper_image(self, x: FeatureMap) -> Float[Tensor, "batch last_rows last_columns image_width"]:
        """Apply the last image blocks to what `lower_image` gave, with the gates off, and the last norm."""
        first, block = self.first_fused
        for stage, blocks in enumerate(self.image_encoder.blocks[first:], first):
            x = self.image_encoder.merging[stage - 1](x) if stage > first else x
            for each in blocks[block if stage == first else 0 :]:
                x = each(x)
        return self.image_encoder.norm_post(x)

    def upper_text(self, words: Words, mask: Bool[Tensor, "batch length"]) -> Words:
        """Apply the last text blocks to what `lower_text` gave, with the gates off."""
        for block in self._fused_text_blocks():
            words = block(words, mask)
        return words

    def upper(
        self,
        x: FeatureMap,
        words: Words,
        mask: Bool[Tensor, "batch length"],
        fused: bool = True,
        window: int | None = None,
        last_norm: bool = True,
    ) -> FusedStates:
        """Apply the pairs of last blocks to what `lower_image` and `lower_text` gave; see `forward`."""
        first, block = self.first_fused
        pairs, maps = self._fused_text_blocks(), []
        places = iter(pairs)
        for stage, blocks in enumerate(self.image_encoder.blocks[first:], first):
            x = self.image_encoder.merging[stage - 1](x) if stage > first else x
            for image_block in blocks[block if stage == first else 0 :]:
                text_block = next(places)
                to_image = Context(words, mask) if fused else None
                to_text = Context(x.flatten(1, 2)) if fused else None
                # In parallel: the text block reads the image from before this pair.
                x, words = (
                    image_block(x, window, to_image),
                    text_block(words, mask, to_text, last_norm or text_block is not pairs[-1]),
                )
            maps.append(x)
        return FusedStates(words, maps)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"],
        text: Tokens,
        fused: bool = True,
        window: int | None = None,
        last_norm: bool = True,
    ) -> FusedStates:
        """Encode pairs, with the gates on.

        fused: without, each backbone goes through its blocks alone. window: of the image backbone. last_norm: whether
        the last text block ends with its norm (released code: in detection, but not in pre-training with captions).
        """
        x, maps = self.lower_image(image, window)
        words, mask = self.lower_text(text)
        states = self.upper(x, words, mask, fused, window, last_norm)
        return FusedStates(states.words, [*maps, *states.maps])
