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

from polymodal.modalities.boxes import BoxSets, generalised_overlap, to_corners

OBJECT, NONE = 0, 1  # classes
CLASS_WEIGHT, PLACE_WEIGHT, OVERLAP_WEIGHT = 1.0, 5.0, 2.0
NONE_WEIGHT = 0.1  # of the class of a query that finds nothing, which most are


class Matching(NamedTuple):
    """Which query of which example stands for which of its objects."""

    example: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]


@torch.no_grad()
def match(
    logits: Float[Tensor, "batch queries 2"], boxes: Float[Tensor, "batch queries 4"], targets: BoxSets
) -> Matching:
    """The cheapest matching of each example (Hungarian), as many pairs as there are queries and objects for.

    boxes: centre, width and height. The cost of a pair is -p(object) + 5 times the L1 distance - 2 times the GIoU.
    """
    apart = (boxes[:, :, None] - targets.boxes[:, None]).abs().sum(-1)
    overlap = generalised_overlap(to_corners(boxes)[:, :, None], to_corners(targets.boxes)[:, None])
    likely = logits.softmax(-1)[..., OBJECT, None]
    cost = (PLACE_WEIGHT * apart - OVERLAP_WEIGHT * overlap - CLASS_WEIGHT * likely).float().cpu().numpy()
    triples = [
        (example, query, target)
        for example, (one, count) in enumerate(zip(cost, targets.counts.tolist(), strict=True))
        for query, target in zip(*linear_sum_assignment(one[:, :count]), strict=True)
    ]
    columns = torch.tensor(triples, dtype=torch.long, device=logits.device).reshape(-1, 3)
    return Matching(*columns.unbind(1))


def detection_loss(
    logits: Float[Tensor, "batch queries 2"],
    boxes: Float[Tensor, "batch queries 4"],
    targets: BoxSets,
    matching: Matching | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of object and none, + 5 times L1, + 2 times 1 - GIoU, the last two a matched object.

    boxes: centre, width and height. matching: by default the cheapest.
    """
    example, query, target = matching or match(logits, boxes, targets)
    classes = torch.full(logits.shape[:2], NONE, device=logits.device)
    classes[example, query] = OBJECT
    weights = logits.new_tensor([1.0, NONE_WEIGHT])
    loss = CLASS_WEIGHT * F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weights)
    ours, theirs = boxes[example, query], targets.boxes[example, target]
    apart = (ours - theirs).abs().sum()
    lacking = (1 - generalised_overlap(to_corners(ours), to_corners(theirs))).sum()
    return loss + (PLACE_WEIGHT * apart + OVERLAP_WEIGHT * lacking) / max(len(example), 1)
