"""Set prediction loss of DETR: Hungarian matching of predicted boxes to objects, then class, L1 and GIoU losses.

DETR (Carion et al. 2020, section 3.1), for one class of objects: those that a referring expression refers to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from polymodal.layers.distributed import all_gather
from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy, generalized_iou, intersection_over_union
from polymodal.objectives.reduction import global_mean

OBJECT, NO_OBJECT = 0, 1  # classes
CLASS_COEF, L1_COEF, GIOU_COEF = 1.0, 5.0, 2.0
EOS_COEF = 0.1  # weight of the "no object" class, which most queries have
NON_FINITE_COST = 1e6  # of a prediction that is NaN or infinite; above all others


class Assignment(NamedTuple):
    """Matched pairs: index of the example in the batch, of its query, and of its object."""

    example: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]


@torch.no_grad()
def hungarian_match(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: PaddedBoxes
) -> Assignment:
    """Return the minimum-cost (Hungarian) assignment of queries to objects of each example.

    boxes: cxcywh. Cost of a pair: -p(object) + 5 * L1 distance - 2 * GIoU; of a non-finite prediction, a large number,
    so that the loss becomes non-finite instead of the assignment failing.
    """
    # Cost matrices of all pairs of queries and objects.
    l1 = (boxes[:, :, None] - targets.boxes[:, None]).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(targets.boxes)[:, None])
    probability = logits.softmax(-1)[..., OBJECT, None]
    costs = (L1_COEF * l1 - GIOU_COEF * giou - CLASS_COEF * probability).float()
    cost = costs.nan_to_num(NON_FINITE_COST, NON_FINITE_COST, NON_FINITE_COST).cpu().numpy()
    triples = [
        (example, query, target)
        for example, (example_cost, count) in enumerate(zip(cost, targets.counts.tolist(), strict=True))
        for query, target in zip(*linear_sum_assignment(example_cost[:, :count]), strict=True)
    ]
    columns = torch.tensor(triples, dtype=torch.long, device=logits.device).reshape(-1, 3)
    return Assignment(*columns.unbind(1))


def detection_loss(
    logits: Float[Tensor, "batch queries 2"],
    boxes: Float[Tensor, "batch queries 4"],
    targets: PaddedBoxes,
    assignment: Assignment | None = None,
) -> Float[Tensor, ""]:
    """Return cross-entropy of object and no object + the sum over matched objects of (5 * L1 + 2 * (1 - GIoU)) / number
    of objects (DETR, released code).

    boxes: cxcywh. assignment: by default `hungarian_match`. Weights and objects are counted over all processes.
    Computed in float32, also under autocast.
    """
    logits, boxes = logits.float(), boxes.float()
    example, query, target = assignment or hungarian_match(logits, boxes, targets)
    classes = torch.full(logits.shape[:2], NO_OBJECT, device=logits.device)
    classes[example, query] = OBJECT
    # Unmatched queries are labeled "no object", down-weighted against class imbalance.
    weights = logits.new_tensor([1.0, EOS_COEF])
    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights, reduction="sum")
    loss = CLASS_COEF * global_mean(loss, weights[classes].sum())
    predicted, objects = boxes[example, query], targets.boxes[example, target]
    l1 = (predicted - objects).abs().sum()
    giou_loss = (1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(objects))).sum()
    return loss + global_mean(L1_COEF * l1 + GIOU_COEF * giou_loss, targets.counts.sum())


def deep_supervision_loss(
    logits: Float[Tensor, "layers batch queries 2"],
    boxes: Float[Tensor, "layers batch queries 4"],
    targets: PaddedBoxes,
) -> Float[Tensor, ""]:
    """Return the sum over the layers of a decoder of the detection loss after each (DETR, auxiliary losses)."""
    return torch.stack([detection_loss(*layer, targets) for layer in zip(logits, boxes, strict=True)]).sum()


class Detections(NamedTuple):
    """Boxes (xyxy, inside the image), and the probability of each that it is of an object."""

    boxes: Float[Tensor, "batch queries 4"]
    probability: Float[Tensor, "batch queries"]

    @classmethod
    def of(cls, logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"]) -> Detections:
        """Return what a head predicts. boxes: cxcywh."""
        return cls(cxcywh_to_xyxy(boxes).clamp(0, 1), logits.softmax(-1)[..., OBJECT])


@torch.no_grad()
def matched_targets(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: PaddedBoxes
) -> tuple[PaddedBoxes, Float[Tensor, ""]]:
    """Return a teacher's boxes of matched objects as targets, and their quality (SimVG, Dai et al. 2024, section 3.3).

    boxes: cxcywh. The quality, from 0 to 1, is the mean over matched objects of all processes of the object's
    probability times the IoU with the ground truth; 0 without objects. Computed in float32, also under autocast.
    """
    logits, boxes = logits.float(), boxes.float()
    example, query, target = hungarian_match(logits, boxes, targets)
    matched = boxes[example, query]
    iou, _ = intersection_over_union(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(targets.boxes[example, target]))
    quality = iou * logits.softmax(-1)[example, query, OBJECT]
    counts = torch.bincount(example, minlength=len(targets))
    # Matched boxes of each example, from its first place on.
    place = torch.arange(len(example), device=example.device) - (counts.cumsum(0) - counts)[example]
    taken = torch.zeros_like(targets.boxes)
    taken[example, place] = matched
    total, pairs = all_gather(torch.stack([quality.sum(), quality.new_tensor(float(len(quality)))])[None]).sum(0)
    return PaddedBoxes(taken, counts), total / pairs.clamp(min=1)
