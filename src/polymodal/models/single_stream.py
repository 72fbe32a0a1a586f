"""Single-stream encoder: one post-norm transformer over [regions; text], or over text alone, and its pre-training.

Unicoder-VL (Li et al. 2020), UNITER (Chen et al. 2020) and M3P (Ni et al. 2021, section 3): a region is its feature plus
an embedding of its box, a position table runs over regions and words, and attention is joint and bidirectional.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import ContextLength, DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.data.masked_input import mask_regions, mask_tokens_by
from polymodal.layers.cross_attention import CrossAttentionBlock
from polymodal.modalities.padding import mask_of
from polymodal.modalities.text import Tokens
from polymodal.objectives.image_text_matching import ITMGroups, itm_group_loss
from polymodal.objectives.masked_modeling import masked_cross_entropy, masked_feature_loss

NORM_EPS = 1e-12  # released code of M3P and UNITER


@dataclass(frozen=True)
class SingleStreamConfig:
    """Configuration of the transformer."""

    vocab_size: PositiveInt = 4000
    """Entries of the tokenizer."""
    context_length: ContextLength = 48
    """Maximum length of a text in tokens."""
    width: PositiveInt = 64
    """Channels of every token."""
    depth: PositiveInt = 2
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    dropout: DecayRate = 0.0
    """After embeddings, attention and MLPs."""

    def build(self, vocab_size: int, num_regions: int, feature_dim: int) -> SingleStreamEncoder:
        """vocab_size: entries of the tokenizer. num_regions, feature_dim: of an image, and of a region."""
        return SingleStreamEncoder(self, vocab_size, num_regions, feature_dim)


def box_features(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 5"]:
    """Return left, top, right, bottom and area of boxes, L2-normalized together (released code of M3P).

    boxes: left, top, right, bottom as fractions of the image.
    """
    left, top, right, bottom = boxes.unbind(-1)
    return F.normalize(torch.stack([left, top, right, bottom, (right - left) * (bottom - top)], dim=-1), dim=-1)


def grid_boxes(grid: int) -> Float[Tensor, "patches 4"]:
    """Return the boxes of the patches of a square grid, row by row, as fractions of the image."""
    place = torch.arange(grid) / grid
    top, left = (side.flatten() for side in torch.meshgrid(place, place, indexing="ij"))
    return torch.stack([left, top, left + 1 / grid, top + 1 / grid], dim=1)


class SingleStreamEncoder(nn.Module):
    """Embeddings of regions and words, and post-norm blocks. The last entry of the word embedding is the mask token."""

    def __init__(self, config: SingleStreamConfig, vocab_size: int, num_regions: int, feature_dim: int):
        super().__init__()
        width, self.num_regions = config.width, num_regions
        self.word = nn.Embedding(vocab_size + 1, width)
        self.pos_embed = nn.Embedding(num_regions + config.context_length, width)
        self.region_projection = nn.Linear(feature_dim, width)
        self.box_projection = nn.Linear(5, width)
        self.region_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(width, config.num_heads, None, None, "post", config.dropout, cross_attention=False)
            for _ in range(config.depth)
        )
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = NORM_EPS
        for embedding in (self.word, self.pos_embed):
            nn.init.normal_(embedding.weight, std=width**-0.5)  # released code of M3P; linear layers as torch has them

    def forward(
        self,
        text: Tokens,
        regions: Float[Tensor, "batch regions feature_dim"] | None = None,
        boxes: Float[Tensor, "regions 4"] | Float[Tensor, "batch regions 4"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Encode texts, behind the regions of an image each. regions: features, which are L2-normalized here. boxes: of
        them, as fractions of the image. Returns regions, then words."""
        x, mask = self.word(text.ids), mask_of(text.lengths, text.ids.shape[1])
        if regions is not None:
            assert boxes is not None
            of_boxes = self.box_projection(box_features(boxes))
            of_regions = self.region_norm(self.region_projection(F.normalize(regions, dim=-1)) + of_boxes)
            # Words follow the regions in the sequence and in the position table.
            x = torch.cat([self.dropout(of_regions), x], dim=1)
            mask = torch.cat([mask.new_ones(regions.shape[:2]), mask], dim=1)
        position = torch.arange(x.shape[1], device=x.device).clamp(max=self.pos_embed.num_embeddings - 1)
        x = self.dropout(self.norm(x + self.pos_embed(position)))
        for block in self.blocks:
            x = block(x, mask=mask)
        return x


@dataclass(frozen=True)
class MaskingConfig:
    """Masking of pairs."""

    word_prob: UnitInterval = 0.15
    """Fraction of a text's tokens that is predicted, of which 80 % are masked, 10 % random, 10 % as they are."""
    region_prob: UnitInterval = 0.15
    """Fraction of an image's regions that is predicted, of those with a class other than the background."""
    region_keep_prob: UnitInterval = 0.1
    """Fraction of these that keep their feature; that of the others is zero."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses of pairs."""

    mlm: NonNegativeFloat = 1.0
    """Masked words, given the image (MC-MLM)."""
    mrc: NonNegativeFloat = 1.0
    """Classes of masked regions (MC-MRM)."""
    mrfr: NonNegativeFloat = 1.0
    """Features of masked regions (MRFR, part of MC-MRM)."""
    multi_cls: NonNegativeFloat = 1.0
    """Matching as classification of the positive among the candidates of a group (MC-VLM)."""
    bin_cls: NonNegativeFloat = 1.0
    """Matching as classification of each pair (MC-VLM)."""


class PairNumbers(TypedDict):
    """Random numbers in [0, 1) of the groups of each example: of its text among images, and of its image among texts.

    slots: of the positive's slot and each negative. mask_kind: below 1/2, words of the pair are masked, else regions.
    word_numbers, region_numbers: see `mask_tokens_by` and `mask_regions`.
    """

    slots: Float[Tensor, "batch 2 size"]
    mask_kind: Float[Tensor, "batch 2 size"]
    word_numbers: Float[Tensor, "batch 2 size length 3"]
    region_numbers: Float[Tensor, "batch 2 size regions 2"]


class Pairs(NamedTuple):
    """Pairs, group after group: texts, regions, and the boxes and classes (0: background) of these."""

    text: Tokens
    regions: Float[Tensor, "pairs regions feature_dim"]
    boxes: Float[Tensor, "regions 4"] | Float[Tensor, "pairs regions 4"]
    classes: Int[Tensor, "pairs regions"]


class MaskedPairs(NamedTuple):
    """What is given in place of pairs, and which words and regions are masked, whatever is given there."""

    text: Tokens
    regions: Float[Tensor, "pairs regions feature_dim"]
    masked_words: Bool[Tensor, "pairs length"]
    masked_regions: Bool[Tensor, "pairs regions"]


def select_texts(text: Tokens, rows: Int[Tensor, " rows"]) -> Tokens:
    """Return the texts of these rows."""
    return replace(text, ids=text.ids[rows], lengths=text.lengths[rows])


def join_halves(first: Tokens, second: Tokens, max_length: int) -> Tokens:
    """Join the beginnings of two texts, of at most half of `max_length` tokens each (CLCM, released code of M3P)."""
    a, b = (text.lengths.clamp(max=max_length // 2) for text in (first, second))
    lengths = a + b
    place = torch.arange(int(lengths.max()), device=lengths.device).expand(len(lengths), -1)
    of_first, of_second = (
        text.ids.gather(1, where.clamp(min=0, max=text.ids.shape[1] - 1))
        for text, where in ((first, place), (second, place - a[:, None]))
    )
    ids = torch.where(place < a[:, None], of_first, of_second)
    return replace(first, ids=ids.masked_fill(place >= lengths[:, None], 0), lengths=lengths)


class SingleStreamPretraining(nn.Module):
    """The encoder with the heads of masked words, masked regions and matching."""

    def __init__(
        self,
        config: SingleStreamConfig,
        vocab_size: int,
        num_regions: int,
        feature_dim: int,
        num_classes: int,
        masking: MaskingConfig,
        weights: LossConfig,
        clcm: bool = False,
    ):
        """num_classes: of regions, with the background. clcm: whether there is the head of contrastive matching of
        code-switched text (`clcm_scores`)."""
        super().__init__()
        self.encoder = config.build(vocab_size, num_regions, feature_dim)
        self.masking, self.weights, self.vocab_size = masking, weights, vocab_size
        width = config.width
        self.word_bias = nn.Parameter(torch.zeros(vocab_size))
        norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.class_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), norm, nn.Linear(width, num_classes))
        self.feature_head = nn.Linear(width, feature_dim)
        self.itm_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.clcm_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)) if clcm else None

    def word_logits(self, hidden_states: Float[Tensor, "masked width"]) -> Float[Tensor, "masked vocab_size"]:
        """Return the logits of words, whose embedding is the output layer."""
        return F.linear(hidden_states, self.encoder.word.weight[: self.vocab_size], self.word_bias)

    def mlm_loss(
        self, masked: Tokens, targets: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, ""]:
        """Return the loss of masked words of texts alone (xMLM, where they are in many languages)."""
        return masked_cross_entropy(self.word_logits(self.encoder(masked)[mask]), targets[mask])

    def match_scores(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return the logit that text and image of each pair match, from the first token of the sequence."""
        return self.itm_head(self.encoder(pairs.text, pairs.regions, pairs.boxes)[:, 0]).squeeze(1)

    def clcm_scores(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Return the logit that the two halves of each text say the same of the image."""
        assert self.clcm_head is not None
        return self.clcm_head(self.encoder(pairs.text, pairs.regions, pairs.boxes)[:, 0]).squeeze(1)

    def mask_pairs(
        self,
        pairs: Pairs,
        mask_kind: Float[Tensor, "groups size"],
        word_numbers: Float[Tensor, "groups size length 3"],
        region_numbers: Float[Tensor, "groups size regions 2"],
    ) -> MaskedPairs:
        """Mask either words or regions of each pair, by given random numbers (`PairNumbers`)."""
        masking, of_words = self.masking, mask_kind.flatten() < 0.5
        words = mask_tokens_by(
            pairs.text, word_numbers.flatten(0, 1), masking.word_prob, self.vocab_size, self.vocab_size
        )
        regions = mask_regions(
            pairs.classes != 0, region_numbers.flatten(0, 1), masking.region_prob, masking.region_keep_prob
        )
        ids = torch.where(of_words[:, None], words.ids, pairs.text.ids)
        zeroed = regions.zeroed & ~of_words[:, None]
        return MaskedPairs(
            replace(pairs.text, ids=ids),
            pairs.regions.masked_fill(zeroed[..., None], 0.0),
            words.mask & of_words[:, None],
            regions.predicted & ~of_words[:, None],
        )

    def masked_losses(self, pairs: Pairs, masked: MaskedPairs, groups: ITMGroups) -> dict[str, Tensor]:
        """Return ITM of all pairs, and MLM, MRC and MRFR of the positive ones; what is masked in negatives is not
        predicted."""
        weights, count = self.weights, pairs.regions.shape[1]
        x = self.encoder(masked.text, masked.regions, pairs.boxes)
        of_regions, of_words = x[:, :count], x[:, count:]
        scores = self.itm_head(x[:, 0]).view_as(groups.candidates)
        losses = {"itm": itm_group_loss(scores, groups, weights.multi_cls, weights.bin_cls)}
        positive = groups.positive.flatten()[:, None]
        words, regions = masked.masked_words & positive, masked.masked_regions & positive
        if weights.mlm:
            logits = self.word_logits(of_words[words])
            losses["mlm"] = weights.mlm * masked_cross_entropy(logits, pairs.text.ids[words])
        if weights.mrc:
            logits = self.class_head(of_regions[regions])
            losses["mrc"] = weights.mrc * masked_cross_entropy(logits, pairs.classes[regions])
        if weights.mrfr:
            goal = F.normalize(pairs.regions, dim=-1)[regions].detach()
            losses["mrfr"] = weights.mrfr * masked_feature_loss(self.feature_head(of_regions[regions]), goal)
        return losses
