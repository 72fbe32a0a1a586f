"""Losses of a dense detector with one anchor at each location, whose classes are the tokens of a text.

Adaptive training sample selection (ATSS, Zhang et al. 2020, algorithm 1), and losses as in its released code: sigmoid
focal loss over locations and tokens (GLIP, Li et al. 2022, section 3.1), GIoU loss weighted by centerness, and binary
cross-entropy of centerness. Boxes are fractions of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather
from polymodal.layers.dynamic_head import DensePrediction
from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy, generalized_iou, intersection_over_union
from polymodal.objectives.reduction import global_mean

NO_OBJECT = -1
TOP_K = 9  # candidates of each level
MIN_INSIDE = 1e-5  # of the image: how far the center of a positive is inside its box
CENTER_SCALE, SIZE_SCALE = 10.0, 5.0  # of the deltas of centers and of logarithms of sizes
MAX_LOG_SIZE = math.log(1000 / 16)
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
GIOU_WEIGHT = 2.0
NMS_THRESHOLD = 0.6


class Anchors(NamedTuple):
    """boxes: cxcywh of all locations, level after level. counts: locations of each level."""

    boxes: Float[Tensor, "locations 4"]
    counts: list[int]


def square_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], image_size: int, scale: float = 8.0
) -> Anchors:
    """Return one square anchor at the center of each location, with sides of `scale` times the stride of its level.

    sizes: rows and columns of each level. strides: of each level in pixels.
    """
    boxes = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        center = (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * stride
        boxes.append(torch.cat([center, torch.full_like(center, scale * stride)], dim=1) / image_size)
    return Anchors(torch.cat(boxes), [len(each) for each in boxes])


def encode_boxes(boxes: Float[Tensor, "*shape 4"], anchors: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Return the deltas from anchors to boxes, both cxcywh (Girshick et al. 2014, scaled)."""
    center = CENTER_SCALE * (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    return torch.cat([center, SIZE_SCALE * (boxes[..., 2:] / anchors[..., 2:]).log()], dim=-1)


def decode_boxes(deltas: Float[Tensor, "*shape 4"], anchors: Float[Tensor, "*#shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Undo `encode_boxes`; sizes grow at most by 1000 / 16."""
    center = deltas[..., :2] / CENTER_SCALE * anchors[..., 2:] + anchors[..., :2]
    size = (deltas[..., 2:] / SIZE_SCALE).clamp(max=MAX_LOG_SIZE).exp() * anchors[..., 2:]
    return torch.cat([center, size], dim=-1)


@torch.no_grad()
def atss_assign(anchors: Anchors, boxes: Float[Tensor, "objects 4"]) -> Int[Tensor, " locations"]:
    """Return the object of each location, or `NO_OBJECT` (ATSS, algorithm 1).

    Candidates of an object are the `TOP_K` anchors of each level that are nearest to its center. Positives have an IoU
    of at least the mean plus the standard deviation of the candidates' IoUs, and their center in the box; of several
    objects, a location has the one of the highest IoU. boxes: cxcywh.
    """
    if not len(boxes):
        return torch.full((len(anchors.boxes),), NO_OBJECT, device=boxes.device)
    iou, _ = intersection_over_union(cxcywh_to_xyxy(anchors.boxes)[:, None], cxcywh_to_xyxy(boxes)[None])
    distance = torch.cdist(anchors.boxes[:, :2], boxes[:, :2])
    nearest, first = [], 0
    for count in anchors.counts:
        level = distance[first : first + count].topk(min(TOP_K, count), dim=0, largest=False).indices
        nearest.append(level + first)
        first += count
    candidates = torch.cat(nearest)
    overlaps = iou.gather(0, candidates)
    spread = overlaps.std(0) if len(overlaps) > 1 else 0.0
    corners, centers = cxcywh_to_xyxy(boxes), anchors.boxes[candidates, :2]
    inside = torch.minimum(centers - corners[:, :2], corners[:, 2:] - centers).amin(-1) > MIN_INSIDE
    positive = (overlaps >= overlaps.mean(0) + spread) & inside
    chosen = torch.full_like(iou, -math.inf).scatter(0, candidates, overlaps.where(positive, -math.inf))
    best, index = chosen.max(1)
    return index.where(best > -math.inf, NO_OBJECT)


def centerness_of(
    boxes: Float[Tensor, "positives 4"], anchors: Float[Tensor, "positives 4"]
) -> Float[Tensor, " positives"]:
    """Return how central the centers of anchors are in boxes, from 0 to 1 (FCOS, Tian et al. 2019, equation 3)."""
    corners, center = cxcywh_to_xyxy(boxes), anchors[:, :2]
    before, after = center - corners[:, :2], corners[:, 2:] - center
    return (torch.minimum(before, after) / torch.maximum(before, after)).clamp(min=0).prod(-1).sqrt()


def token_targets(
    spans: Int[Tensor, "objects 2"], assigned: Int[Tensor, " locations"], length: int
) -> Float[Tensor, "locations length"]:
    """Return 1 for the tokens of the phrase of each location's object, all of its sub-words.

    spans: first token of each object's phrase, and the one after its last.
    """
    targets = torch.zeros(len(assigned), length, device=assigned.device)
    positive = assigned != NO_OBJECT
    position = torch.arange(length, device=assigned.device)
    first, last = spans[assigned[positive]].unbind(1)
    targets[positive] = ((position >= first[:, None]) & (position < last[:, None])).to(targets)
    return targets


def sigmoid_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss of each logit (Lin et al. 2017b, equation 5). targets: 0 or 1."""
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = probability * (1 - targets) + (1 - probability) * targets
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * cross_entropy * wrong**GAMMA


def dense_detection_losses(
    prediction: DensePrediction,
    logits: Float[Tensor, "batch locations length"],
    text_mask: Bool[Tensor, "batch length"],
    anchors: Anchors,
    targets: PaddedBoxes,
    spans: Int[Tensor, "batch objects 2"],
) -> dict[str, Tensor]:
    """Return the losses of tokens, boxes and centerness.

    Each is a mean over the positive locations of all processes; that of boxes is weighted by centerness. logits: of
    locations and tokens. text_mask: False for padding. spans: of each object's phrase, see `token_targets`.
    """
    assigned = [
        atss_assign(anchors, boxes[:count]) for boxes, count in zip(targets.boxes, targets.counts.tolist(), strict=True)
    ]
    positive = torch.stack(assigned) != NO_OBJECT
    target = torch.stack(
        [token_targets(some, index, logits.shape[2]) for some, index in zip(spans, assigned, strict=True)]
    )
    focal = sigmoid_focal_loss(logits.float(), target) * text_mask[:, None]
    count = positive.sum()
    total = all_gather(count[None]).sum()
    # Without any positive, negatives are summed as for one.
    focal_count = count + (total == 0).long()
    at = anchors.boxes.expand(len(positive), -1, -1)[positive]
    objects = torch.cat([b[i[i != NO_OBJECT]] for b, i in zip(targets.boxes, assigned, strict=True)])
    predicted = decode_boxes(prediction.deltas.float()[positive], at)
    weight = centerness_of(objects, at)
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(objects))
    centerness = F.binary_cross_entropy_with_logits(prediction.centerness.float()[positive], weight, reduction="none")
    return {
        "token": global_mean(focal.sum(), focal_count),
        "box": GIOU_WEIGHT * global_mean(((1 - giou) * weight).sum(), weight.sum()),
        "centerness": global_mean(centerness.sum(), count),
    }


def non_maximum_suppression(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], count: int, threshold: float = NMS_THRESHOLD
) -> Int[Tensor, " kept"]:
    """Return the indices of at most `count` boxes, by falling score, without those that overlap a better one.

    boxes: xyxy. threshold: maximum IoU of two boxes that stay.
    """
    order = scores.argsort(descending=True)
    kept: list[Tensor] = []
    while len(order) and len(kept) < count:
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[intersection_over_union(boxes[best], boxes[order])[0] <= threshold]
    return torch.stack(kept) if kept else order
