"""Sets of boxes against sets of objects: a matching of least cost, then class, place and overlap of what is matched.

DETR (Carion et al. 2020, section 3.1), for one class of objects: those that are meant.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy, generalized_iou

OBJECT, NO_OBJECT = 0, 1  # classes
CLASS_COEF, L1_COEF, GIOU_COEF = 1.0, 5.0, 2.0
EOS_COEF = 0.1  # of the class of a query that finds nothing, which most are


class Assignment(NamedTuple):
    """Which query of which example stands for which of its objects."""

    example: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]


@torch.no_grad()
def hungarian_match(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: PaddedBoxes
) -> Assignment:
    """The cheapest matching of each example (Hungarian), as many pairs as there are queries and objects for.

    boxes: center, width and height. The cost of a pair is -p(object) + 5 times the L1 distance - 2 times the GIoU.
    """
    apart = (boxes[:, :, None] - targets.boxes[:, None]).abs().sum(-1)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(targets.boxes)[:, None])
    likely = logits.softmax(-1)[..., OBJECT, None]
    cost = (L1_COEF * apart - GIOU_COEF * overlap - CLASS_COEF * likely).float().cpu().numpy()
    triples = [
        (example, query, target)
        for example, (one, count) in enumerate(zip(cost, targets.counts.tolist(), strict=True))
        for query, target in zip(*linear_sum_assignment(one[:, :count]), strict=True)
    ]
    columns = torch.tensor(triples, dtype=torch.long, device=logits.device).reshape(-1, 3)
    return Assignment(*columns.unbind(1))


def detection_loss(
    logits: Float[Tensor, "batch queries 2"],
    boxes: Float[Tensor, "batch queries 4"],
    targets: PaddedBoxes,
    assignment: Assignment | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of object and none, + 5 times L1, + 2 times 1 - GIoU, the last two a matched object.

    boxes: center, width and height. assignment: by default the cheapest.
    """
    example, query, target = assignment or hungarian_match(logits, boxes, targets)
    classes = torch.full(logits.shape[:2], NO_OBJECT, device=logits.device)
    classes[example, query] = OBJECT
    weights = logits.new_tensor([1.0, EOS_COEF])
    loss = CLASS_COEF * F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights)
    ours, theirs = boxes[example, query], targets.boxes[example, target]
    apart = (ours - theirs).abs().sum()
    lacking = (1 - generalized_iou(cxcywh_to_xyxy(ours), cxcywh_to_xyxy(theirs))).sum()
    return loss + (L1_COEF * apart + GIOU_COEF * lacking) / max(len(example), 1)
