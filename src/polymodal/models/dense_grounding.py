"""Dense detector whose classes are the words of a text: feature pyramid, dynamic head and token alignment.

GLIP (Li et al. 2022, section 3) and FIBER's fine-grained pre-training (Dou et al. 2022, section 3.2), whose head fuses
nothing: the words and maps that it is given are fused already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveFloat, PositiveInt
from polymodal.errors import UserError
from polymodal.layers.dynamic_head import DenseHead, DensePrediction, TokenAlignment
from polymodal.layers.feature_pyramid import FeaturePyramid
from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy
from polymodal.models.dual_encoder import ImageTextBatch
from polymodal.objectives.dense_detection import (
    Anchors,
    decode_boxes,
    dense_detection_losses,
    non_maximum_suppression,
    square_anchors,
)
from polymodal.objectives.detection import Detections

Words = Float[Tensor, "batch length text_width"]


@dataclass(frozen=True)
class DenseGroundingConfig:
    """Configuration of the detector."""

    num_stages: PositiveInt = 2
    """Last stages of the image backbone that the feature pyramid takes (3 in the paper: P3 to P5)."""
    extra_levels: NonNegativeInt = 1
    """Further levels of the pyramid (2 in the paper: P6 and P7)."""
    channels: PositiveInt = 64
    """Channels of the feature pyramid and of the head."""
    depth: PositiveInt = 1
    """Blocks of the dynamic head."""
    norm_groups: PositiveInt = 16
    """Groups of the head's group norms; they divide the channels."""
    anchor_scale: PositiveFloat = 4.0
    """Side of an anchor over the stride of its level (8 in the paper)."""

    def __post_init__(self) -> None:
        if self.channels % self.norm_groups or self.channels % 4:
            raise UserError(f"{self.channels} channels of a detector divide by 4 and by {self.norm_groups} groups.")

    def build(self, widths: Sequence[int], strides: Sequence[int], text_width: int) -> DenseGrounding:
        """widths, strides: of all stages of the image backbone. Raises UserError where it has fewer stages."""
        if self.num_stages > len(widths):
            raise UserError(f"A detector of {self.num_stages} stages needs as many of the image backbone.")
        return DenseGrounding(self, widths[-self.num_stages :], strides[-self.num_stages], text_width)


class PhraseBoxBatch(ImageTextBatch):
    """Images and texts, the boxes of all phrases of the text, and the tokens of each box's phrase."""

    boxes: PaddedBoxes
    spans: Int[Tensor, "batch objects 2"]


class Located(NamedTuple):
    """What the head predicts of all locations, the logits that each shows a word, and the anchors."""

    prediction: DensePrediction
    logits: Float[Tensor, "batch locations length"]
    anchors: Anchors


class DenseGrounding(nn.Module):
    """Norms of the maps, feature pyramid, dynamic head, and alignment with words."""

    def __init__(self, config: DenseGroundingConfig, widths: Sequence[int], stride: int, text_width: int):
        """stride: of the finest map in pixels."""
        super().__init__()
        self.config = config
        levels = len(widths) + config.extra_levels
        self.strides = [stride * 2**level for level in range(levels)]
        self.map_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.pyramid = FeaturePyramid(widths, config.channels, config.extra_levels)
        self.head = DenseHead(config.channels, config.depth, levels, config.norm_groups)
        self.alignment = TokenAlignment(config.channels, text_width)

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]], words: Words, image_size: int) -> Located:
        """maps: (batch, rows, columns, width) of all stages. image_size: side in pixels."""
        last = maps[-len(self.map_norms) :]
        normed = [norm(each).permute(0, 3, 1, 2) for norm, each in zip(self.map_norms, last, strict=True)]
        levels = self.pyramid(normed)
        sizes = [(each.shape[2], each.shape[3]) for each in levels]
        anchors = square_anchors(sizes, self.strides, image_size, self.config.anchor_scale)
        prediction = self.head(levels)
        anchors = anchors._replace(boxes=anchors.boxes.to(prediction.deltas))
        return Located(prediction, self.alignment(prediction.features, words), anchors)


def grounding_losses(
    located: Located,
    text_mask: Bool[Tensor, "batch length"],
    boxes: PaddedBoxes,
    spans: Int[Tensor, "batch objects 2"],
) -> dict[str, Tensor]:
    """Return the losses of tokens, boxes and centerness (`dense_detection_losses`)."""
    return dense_detection_losses(located.prediction, located.logits, text_mask, located.anchors, boxes, spans)


def detect(located: Located, phrase_mask: Bool[Tensor, "batch length"], num_queries: int) -> Detections:
    """Return the boxes of a phrase by falling score, after non-maximum suppression; scores are 0 where there are fewer.

    A score is the root of the mean probability of the phrase's tokens times the centerness (released code).
    phrase_mask: True for the tokens of the phrase.
    """
    weight = phrase_mask[:, None].to(located.logits)
    probability = (located.logits.sigmoid() * weight).sum(2) / weight.sum(2).clamp(min=1)
    scores = (probability * located.prediction.centerness.sigmoid()).sqrt()
    every = cxcywh_to_xyxy(decode_boxes(located.prediction.deltas, located.anchors.boxes)).clamp(0, 1)
    boxes = every.new_zeros(len(every), num_queries, 4)
    kept_scores = every.new_zeros(len(every), num_queries)
    for row, (some, score) in enumerate(zip(every, scores, strict=True)):
        kept = non_maximum_suppression(some, score, num_queries)
        boxes[row, : len(kept)], kept_scores[row, : len(kept)] = some[kept], score[kept]
    return Detections(boxes, kept_scores)
