"""Single-stream encoder: one post-norm transformer over [regions; text], or over text alone, and its pre-training.

Unicoder-VL (Li et al. 2020), UNITER (Chen et al. 2020) and M3P (Ni et al. 2021, section 3): a region is its feature
plus an embedding of its box, a position table runs over regions and words, and attention is joint and bidirectional.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import ContextLength, DecayRate, NonNegativeFloat, PositiveInt, UnitInterval
from polymodal.data.masked_input import MaskedTexts, mask_regions, mask_tokens_by
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.layers.cross_attention import CrossAttentionBlock
from polymodal.layers.distributed import all_gather, all_gather_tokens, all_gather_with_grad, rank
from polymodal.modalities.image import patchify
from polymodal.modalities.padding import mask_of
from polymodal.modalities.text import Tokens
from polymodal.objectives.image_text_matching import ITMGroups, itm_group_loss, positive_mask, sample_itm_groups
from polymodal.objectives.masked_modeling import masked_cross_entropy, masked_feature_loss
from polymodal.objectives.reduction import global_mean
from polymodal.rng import ExampleRNG
from polymodal.types import Batch

NORM_EPS = 1e-12  # released code of M3P and UNITER
LABEL_SCALE = 8.0  # of normalized features, so that logits of words can be confident


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
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = NORM_EPS
        for embedding in (self.word, self.pos_embed):
            nn.init.normal_(embedding.weight, std=width**-0.5)  # released code of M3P; linear layers as torch has them
        # Of features of norm 1: as large as words, where torch's own weights leave them smaller than their boxes.
        nn.init.normal_(self.region_projection.weight)

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


class CaptionPairsBatch(PairNumbers):
    """caption: of each image, as it is or code-switched. classes: of each region. group: id of each caption as it is;
    equal ones are no negatives of each other. plain: the captions as they are, for CLCM."""

    image: Float[Tensor, "batch 3 size size"]
    caption: Tokens
    classes: Int[Tensor, "batch regions"]
    group: Float[Tensor, " batch"]
    plain: NotRequired[Tokens]


class StreamsBatch(CaptionPairsBatch, MaskedTexts):
    """text: of the multilingual stream, which has no images."""

    text: Tokens


class RegionTextPairs(NamedTuple):
    """Pairs, group after group: texts, regions with their boxes, and what is predicted of masked regions: classes (0:
    background) and features, which are L2-normalized here."""

    text: Tokens
    regions: Float[Tensor, "pairs regions feature_dim"]
    boxes: Float[Tensor, "regions 4"] | Float[Tensor, "pairs regions 4"]
    classes: Int[Tensor, "pairs regions"]
    targets: Float[Tensor, "pairs regions target_dim"]


class MaskedRegionTextPairs(NamedTuple):
    """What is given in place of pairs, and which words and regions are masked, whatever is given there."""

    text: Tokens
    regions: Float[Tensor, "pairs regions feature_dim"]
    masked_words: Bool[Tensor, "pairs length"]
    masked_regions: Bool[Tensor, "pairs regions"]


class GroupedPairs(NamedTuple):
    """The pairs of groups. query: of each pair, the example of this process that its group belongs to."""

    pairs: RegionTextPairs
    groups: ITMGroups
    query: Int[Tensor, " pairs"]


def pair_numbers(rng: ExampleRNG, size: int, length: int, regions: int) -> PairNumbers:
    """Draw the random numbers of groups of `size` candidates. length: maximum length of a text in tokens."""
    shape = 2, size
    return {
        "slots": rng.numbers(*shape),
        "mask_kind": rng.numbers(*shape),
        "word_numbers": rng.numbers(*shape, length, 3),
        "region_numbers": rng.numbers(*shape, regions, 2),
    }


def group_pairs(
    text: Tokens,
    regions: Float[Tensor, "all regions feature_dim"],
    boxes: Float[Tensor, "regions 4"],
    classes: Int[Tensor, "all regions"],
    targets: Float[Tensor, "all regions target_dim"],
    group: Float[Tensor, " batch"],
    slots: Float[Tensor, "batch 2 size"],
) -> tuple[GroupedPairs, GroupedPairs]:
    """Return t2i, a text among images, and i2t, an image among texts, with negatives from all processes.

    text, regions, classes, targets: of all processes. group, slots: of this one. Texts of equal `group` are no
    negatives.
    """
    first = len(group) * rank()
    query = torch.arange(len(group), device=regions.device) + first
    positive = positive_mask(len(group), len(regions), query, group)
    directions = []
    for direction in range(2):
        groups = sample_itm_groups(query, positive, slots[:, direction])
        repeated, candidates = query.repeat_interleave(groups.candidates.shape[1]), groups.candidates.flatten()
        texts, images = (repeated, candidates) if direction == 0 else (candidates, repeated)
        of_images = regions[images], boxes, classes[images], targets[images]
        pairs = RegionTextPairs(select_texts(text, texts), *of_images)
        directions.append(GroupedPairs(pairs, groups, repeated - first))
    return directions[0], directions[1]


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
        target_dim: int,
        masking: MaskingConfig,
        weights: LossConfig,
        clcm: bool = False,
    ):
        """num_classes: of regions, with the background. target_dim: of the features that are predicted. clcm: whether
        there is the head of contrastive matching of code-switched text."""
        super().__init__()
        self.encoder = config.build(vocab_size, num_regions, feature_dim)
        self.masking, self.weights, self.vocab_size = masking, weights, vocab_size
        width = config.width
        self.word_bias = nn.Parameter(torch.zeros(vocab_size))
        norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.class_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), norm, nn.Linear(width, num_classes))
        self.feature_head = nn.Linear(width, target_dim)
        self.itm_head, self.clcm_head = self._pair_head(width), self._pair_head(width) if clcm else None

    @staticmethod
    def _pair_head(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def word_logits(self, hidden_states: Float[Tensor, "masked width"]) -> Float[Tensor, "masked vocab_size"]:
        """Return the logits of words, whose embedding is the output layer."""
        return F.linear(hidden_states, self.encoder.word.weight[: self.vocab_size], self.word_bias)

    def mlm_loss(
        self, masked: Tokens, targets: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, ""]:
        """Return the loss of masked words of texts alone (xMLM, where they are in many languages)."""
        return masked_cross_entropy(self.word_logits(self.encoder(masked)[mask]), targets[mask])

    def match_scores(
        self,
        text: Tokens,
        regions: Float[Tensor, "pairs regions feature_dim"],
        boxes: Float[Tensor, "regions 4"] | Float[Tensor, "pairs regions 4"],
        clcm: bool = False,
    ) -> Float[Tensor, " pairs"]:
        """Return the logit that text and image of each pair match, from the first token of the sequence.

        clcm: that the two halves of each text say the same of the image.
        """
        head = self.clcm_head if clcm else self.itm_head
        assert head is not None
        return head(self.encoder(text, regions, boxes)[:, 0]).squeeze(1)

    def matching_loss(self, grouped: Sequence[GroupedPairs]) -> Float[Tensor, ""]:
        """Return the sum over groups of both directions of ITM of each pair without masking (fine-tuning)."""
        losses = [
            itm_group_loss(self.match_scores(*pairs[:3]).view_as(groups.candidates), groups, 0.0, 1.0)
            for pairs, groups, _ in grouped
        ]
        return torch.stack(losses).sum()

    def pair_losses(self, grouped: Sequence[GroupedPairs], numbers: PairNumbers) -> dict[str, Tensor]:
        """Return the losses of masked pairs, each the sum over directions."""
        losses: dict[str, Tensor] = {}
        for direction, (pairs, groups, _) in enumerate(grouped):
            words, regions = numbers["word_numbers"], numbers["region_numbers"]
            masked = self.mask_pairs(pairs, *(each[:, direction] for each in (numbers["mask_kind"], words, regions)))
            for name, loss in self.masked_losses(pairs, masked, groups).items():
                losses[name] = losses[name] + loss if name in losses else loss
        return losses

    def clcm_loss(self, grouped: GroupedPairs, text: Tokens, max_length: int) -> Float[Tensor, ""]:
        """Return the loss of contrastive matching of code-switched text: is the second half of a text, by its image's
        half as it is, about the same? text: of this process, before they were switched."""
        pairs, groups, query = grouped
        halves = join_halves(select_texts(text, query), pairs.text, max_length)
        scores = self.match_scores(halves, pairs.regions, pairs.boxes, clcm=True).view_as(groups.candidates)
        return itm_group_loss(scores, groups, 0.0, 1.0)

    def mask_pairs(
        self,
        pairs: RegionTextPairs,
        mask_kind: Float[Tensor, "groups size"],
        word_numbers: Float[Tensor, "groups size length 3"],
        region_numbers: Float[Tensor, "groups size regions 2"],
    ) -> MaskedRegionTextPairs:
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
        return MaskedRegionTextPairs(
            replace(pairs.text, ids=ids),
            pairs.regions.masked_fill(zeroed[..., None], 0.0),
            words.mask & of_words[:, None],
            regions.predicted & ~of_words[:, None],
        )

    def masked_losses(
        self, pairs: RegionTextPairs, masked: MaskedRegionTextPairs, groups: ITMGroups
    ) -> dict[str, Tensor]:
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
            goal = F.normalize(pairs.targets, dim=-1)[regions]
            losses["mrfr"] = weights.mrfr * masked_feature_loss(self.feature_head(of_regions[regions]), goal)
        return losses


class LabelsBatch(TypedDict):
    """caption: of each image, as it is."""

    image: Float[Tensor, "batch 3 size size"]
    caption: Tokens


class PatchPretraining(SingleStreamPretraining):
    """Regions are the patches of an image encoder, which can learn to detect words first, in place of a detector."""

    boxes: Tensor

    def __init__(
        self,
        image: ImageEncoderConfig,
        config: SingleStreamConfig,
        vocab_size: int,
        num_classes: int,
        masking: MaskingConfig,
        weights: LossConfig,
        clcm: bool = False,
    ):
        sizes = vocab_size, image.num_patches, image.width, num_classes, 3 * image.patch_size**2
        super().__init__(config, *sizes, masking, weights, clcm)
        self.image_encoder, self.patch_size, self.context_length = (
            image.build(),
            image.patch_size,
            config.context_length,
        )
        self.label_head = nn.Linear(image.width, vocab_size)
        self.register_buffer("boxes", grid_boxes(image.image_size // image.patch_size), persistent=False)

    def label_losses(self, batch: LabelsBatch) -> dict[str, Tensor]:
        """Return the loss of a caption's words given the image, each by the region that says it most clearly (multiple
        instance learning of word detectors, Fang et al. 2015, section 3)."""
        logits = self.label_head(F.normalize(self.image_encoder(batch["image"])[0], dim=-1) * LABEL_SCALE).amax(1)
        text = batch["caption"]
        nll = -logits.log_softmax(-1).gather(1, text.ids)[text.content_mask]
        return {"labels": global_mean(nll.sum(), text.content_mask.sum())}

    def groups(self, batch: CaptionPairsBatch) -> tuple[GroupedPairs, GroupedPairs]:
        """Return the groups of t2i and i2t, of the batch of all processes."""
        features = all_gather_with_grad(self.image_encoder(batch["image"])[0])
        captions = all_gather_tokens(batch["caption"], self.context_length)
        classes, patches = all_gather(batch["classes"]), all_gather(patchify(batch["image"], self.patch_size))
        return group_pairs(captions, features, self.boxes, classes, patches, batch["group"], batch["slots"])

    def finetuning_losses(self, batch: CaptionPairsBatch) -> dict[str, Tensor]:
        """Matching of each pair without masking, over t2i and i2t."""
        return {"itm": self.matching_loss(self.groups(batch))}

    def itm_logits(self, batch: Batch) -> Float[Tensor, "items texts"]:
        """Return the logit that each text matches each image."""
        text, features = batch["text"], self.image_encoder(batch["image"])[0]
        count = len(text.ids)
        return torch.stack([self.match_scores(text, one.expand(count, -1, -1), self.boxes) for one in features])
