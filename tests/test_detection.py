"""Boxes: overlaps, matching, the detection loss, distillation targets, jitter, patches, and boxes that are none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polymodal.errors import UnreadableExample
from polymodal.layers.detection import TextGuidedQueries
from polymodal.modalities import Expressions, Regions, Words
from polymodal.modalities.boxes import (
    PaddedBoxes,
    boxes_to_patch_mask,
    cxcywh_to_xyxy,
    generalized_iou,
    intersection_over_union,
    keep_patches,
    mean_over_patches,
    random_boxes,
    xyxy_to_cxcywh,
)
from polymodal.modalities.scale_jitter import large_scale_jitter
from polymodal.objectives.detection import EOS_COEF, detection_loss, hungarian_match, matched_targets
from polymodal.rng import ExampleRNG

corner = st.floats(0, 1, width=32)
corners = st.tuples(corner, corner, corner, corner).map(
    lambda edges: (min(edges[0], edges[2]), min(edges[1], edges[3]), max(edges[0], edges[2]), max(edges[1], edges[3]))
)


@given(corners, corners)
@settings(max_examples=60, deadline=None)
def test_overlap_is_that_of_counted_cells(one: tuple, other: tuple) -> None:
    """On a grid of whole numbers, IoU and GIoU are numbers of cells."""
    grid = 12
    a, b = (torch.tensor([round(edge * grid) for edge in box], dtype=torch.float32) for box in (one, other))

    def cells(box: torch.Tensor) -> set:
        left, top, right, bottom = box.int().tolist()
        return set(itertools.product(range(left, right), range(top, bottom)))

    overlap, _ = intersection_over_union(a, b)
    both, either = cells(a) & cells(b), cells(a) | cells(b)
    around = torch.cat([torch.minimum(a[:2], b[:2]), torch.maximum(a[2:], b[2:])])
    assert float(overlap) == pytest.approx(len(both) / len(either) if either else 0, abs=1e-6)
    whole = len(cells(around))
    wanted = float(overlap) - (whole - len(either)) / whole if whole else 0.0
    assert float(generalized_iou(a, b)) == pytest.approx(wanted, abs=1e-5)
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(a)), a, atol=1e-5)


def test_boxes_without_area_have_finite_overlaps_and_gradients() -> None:
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    overlap = generalized_iou(cxcywh_to_xyxy(point), torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    overlap.sum().backward()
    assert torch.isfinite(overlap).all()
    assert torch.isfinite(point.grad).all()


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_matching_is_the_cheapest_of_all(queries: int, objects: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, boxes = torch.randn(1, queries, 2, generator=generator), torch.rand(1, queries, 4, generator=generator)
    truth = cxcywh_to_xyxy(torch.rand(objects, 4, generator=generator))
    targets = PaddedBoxes.of([truth.tolist()])

    def cost(query: int, target: int) -> float:
        apart = (boxes[0, query] - targets.boxes[0, target]).abs().sum()
        overlap = generalized_iou(cxcywh_to_xyxy(boxes[0, query]), cxcywh_to_xyxy(targets.boxes[0, target]))
        return float(5 * apart - 2 * overlap - logits[0, query].softmax(-1)[0])

    pairs = min(queries, objects)
    found = hungarian_match(logits, boxes, targets)
    assert len(found.query) == pairs
    assert len(set(found.query.tolist())) == len(set(found.target.tolist())) == pairs
    own = sum(cost(query, target) for query, target in zip(found.query.tolist(), found.target.tolist(), strict=True))
    every = [
        sum(cost(query, target) for query, target in zip(some, others, strict=True))
        for some in itertools.permutations(range(queries), pairs)
        for others in itertools.combinations(range(objects), pairs)
    ]
    assert own == pytest.approx(min(every), abs=1e-5)


def test_the_loss_is_nothing_for_the_truth_and_by_hand_otherwise() -> None:
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], []])
    sure = torch.tensor([[[20.0, -20.0], [-20.0, 20.0]], [[-20.0, 20.0], [-20.0, 20.0]]])
    boxes = torch.rand(2, 2, 4)
    boxes[0, 0] = targets.boxes[0, 0]
    assert float(detection_loss(sure, boxes, targets)) == pytest.approx(0, abs=1e-5)
    flat = torch.zeros(2, 2, 2)
    boxes[0, 0, 0] += 0.1  # half of its width
    boxes[0, 1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    overlap = 0.1 / 0.3
    by_hand = np.log(2) + 5 * 0.1 + 2 * (1 - overlap)
    assert float(detection_loss(flat, boxes, targets)) == pytest.approx(by_hand, abs=1e-5)
    wrong = torch.tensor([[[-1.0, 1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, 1.0]]])  # the far box is the surer one
    miss, right = np.log1p(np.exp(2)), np.log1p(np.exp(-2))
    classes = (miss + EOS_COEF * (miss + 2 * right)) / (1 + 3 * EOS_COEF)
    assert float(detection_loss(wrong, boxes, targets)) == pytest.approx(classes + by_hand - np.log(2), abs=1e-5)
    nothing = PaddedBoxes.of([[], []])
    assert float(detection_loss(sure.flip(-1), boxes, nothing)) > 5


def test_non_finite_predictions_make_a_non_finite_loss() -> None:
    """The trainer skips such a step; the assignment must not fail before."""
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], [(0.5, 0.5, 0.9, 0.8)]])
    boxes = torch.rand(2, 2, 4)
    boxes[1] = torch.nan
    assert torch.isnan(detection_loss(torch.zeros(2, 2, 2), boxes, targets))
    assert torch.isnan(matched_targets(torch.zeros(2, 2, 2), boxes, targets)[1])
    boxes[1, 1] = targets.boxes[1, 0]
    assert hungarian_match(torch.zeros(2, 2, 2), boxes, targets).query.tolist()[1] == 1, "the finite one is cheaper"


def test_predictions_in_bfloat16_are_matched_and_taught_in_float32() -> None:
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], [(0.5, 0.5, 0.9, 0.8)]])
    logits, boxes = torch.randn(2, 3, 2).bfloat16(), torch.rand(2, 3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        taught, quality = matched_targets(logits, boxes, targets)
        loss = detection_loss(logits, boxes, taught)
    wanted, wanted_quality = matched_targets(logits.float(), boxes.float(), targets)
    assert torch.equal(taught.boxes, wanted.boxes)
    assert torch.equal(quality, wanted_quality)
    assert torch.equal(loss, detection_loss(logits.float(), boxes.float(), wanted))


def test_a_perfect_teacher_replaces_the_truth_and_one_without_objects_says_nothing() -> None:
    targets = PaddedBoxes.of([[(0.1, 0.2, 0.3, 0.6)], [(0.5, 0.5, 0.9, 0.8)]])
    sure = torch.tensor([[[200.0, -200.0]]]).expand(2, 1, 2)
    own, quality = matched_targets(sure, targets.boxes, targets)
    assert float(quality) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(own.boxes, targets.boxes)
    own, quality = matched_targets(sure, targets.boxes, PaddedBoxes.of([[], []]))
    assert float(quality) == 0.0
    assert own.counts.tolist() == [0, 0]


def test_the_teacher_teaches_the_boxes_that_stand_for_objects() -> None:
    """Two queries for three objects: both have an object of their own, and the third is left to the truth."""
    truth = [(0.0, 0.0, 0.2, 0.2), (0.4, 0.4, 0.6, 0.6), (0.8, 0.8, 1.0, 1.0)]
    targets = PaddedBoxes.of([truth, truth[:1]])
    boxes = xyxy_to_cxcywh(torch.tensor([[truth[2], truth[0]], [(0.5, 0.5, 0.7, 0.7), (0.0, 0.0, 0.2, 0.4)]]))
    logits = torch.zeros(2, 2, 2)
    own, quality = matched_targets(logits, boxes, targets)
    assert own.counts.tolist() == [2, 1]
    assert torch.equal(own.boxes[0, :2], boxes[0])
    assert torch.equal(own.boxes[1, 0], boxes[1, 1])
    assert float(quality) == pytest.approx((0.5 + 0.5 + 0.5 * 0.5) / 3)


def test_boxes_stand_on_the_grid_and_have_the_area() -> None:
    grid = 14
    boxes = random_boxes(grid, (0.3, 0.5), ExampleRNG.of(0, 0, 500))
    edges = boxes * grid
    assert torch.allclose(edges, edges.round(), atol=1e-4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    inside = boxes_to_patch_mask(boxes, grid)
    sides = (edges[:, 2:] - edges[:, :2]).round().long()
    assert torch.equal(inside.sum(1), sides.prod(1)), "no patch beside the box, and all in it"
    share = inside.float().mean(1)
    assert 0.28 < float(share.quantile(0.3)) < float(share.quantile(0.95)) < 0.55
    assert float(share.max()) < 0.56
    by_hand = torch.zeros(4, 4, dtype=torch.bool)
    by_hand[1:3, 2:4] = True
    assert torch.equal(boxes_to_patch_mask(torch.tensor([[0.55, 0.3, 0.9, 0.75]]), 4)[0], by_hand.flatten())
    assert boxes_to_patch_mask(torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]), 4).sum(1).tolist() == [1, 1]


def test_objects_without_a_query_count_in_the_mean() -> None:
    """One query for two objects: L1 and GIoU are divided by the number of objects (DETR, released code)."""
    objects = [(0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)]
    logits, box = torch.tensor([[[20.0, -20.0]]]), xyxy_to_cxcywh(torch.tensor([[objects[0]]]))
    box[0, 0, 0] += 0.1  # half of its width
    loss = detection_loss(logits, box, PaddedBoxes.of([objects]))
    assert float(loss) == pytest.approx((5 * 0.1 + 2 * (1 - 0.1 / 0.3)) / 2, abs=1e-4)


def test_what_is_outside_the_patches_is_zero_and_does_not_enter_the_mean() -> None:
    mask = torch.tensor([[True, False, False, True], [False, True, False, False]])
    video = torch.rand(2, 3, 3, 4, 4) + 1
    kept = keep_patches(video, mask)
    assert torch.equal(kept[0, :, :, :2, :2], video[0, :, :, :2, :2])
    assert torch.equal(kept[0, :, :, 2:, 2:], video[0, :, :, 2:, 2:])
    assert int((kept[0, 0, 0] > 0).sum()) == 8
    assert int((kept[1, 2, 1] > 0).sum()) == 4
    assert torch.equal(kept[1, 0, 0, :2, 2:], video[1, 0, 0, :2, 2:])
    tokens = torch.randn(2, 4, 5)
    means = torch.stack([(tokens[0, 0] + tokens[0, 3]) / 2, tokens[1, 1]])
    assert torch.allclose(mean_over_patches(tokens, mask), means)


@given(st.integers(0, 1000), st.sampled_from([(0.3, 0.9), (1.05, 1.4), (0.3, 1.4)]))
@settings(max_examples=40, deadline=None)
def test_jittered_boxes_stay_on_their_objects(seed: int, scale: tuple[float, float]) -> None:
    """A white object on black, whose box is that of its pixels before and after."""
    rng, size = np.random.default_rng(seed), 40
    left, top = rng.integers(0, 26, size=2)
    image = torch.zeros(3, size, size)
    image[:, top : top + 12, left : left + 12] = 1
    box = (left / size, top / size, (left + 12) / size, (top + 12) / size)
    jittered, (moved,) = large_scale_jitter(image, [box], scale, rng)
    rows, columns = (jittered[0] > 0.5).any(1).nonzero(), (jittered[0] > 0.5).any(0).nonzero()
    found = [columns.min() / size, rows.min() / size, (columns.max() + 1) / size, (rows.max() + 1) / size]
    assert moved == pytest.approx([float(edge) for edge in found], abs=1.5 / size)
    assert min(moved) >= 0
    assert max(moved) <= 1
    inside = (moved[2] - moved[0]) * (moved[3] - moved[1]) / (0.3**2)
    if scale[1] < 1:
        assert moved == pytest.approx(box)
    else:
        assert inside > 0.85, "at least 0.9 of it is in the window, enlarged"


def test_jitter_of_one_changes_nothing_and_no_object_is_no_obstacle() -> None:
    image, rng = torch.rand(3, 8, 8), np.random.default_rng(0)
    same, boxes = large_scale_jitter(image, [(0.1, 0.2, 0.3, 0.4)], (1.0, 1.0), rng)
    assert torch.equal(same, image)
    assert boxes == ((0.1, 0.2, 0.3, 0.4),)
    cropped, boxes = large_scale_jitter(image, [], (1.4, 1.4), rng)
    assert not torch.equal(cropped, image)
    assert boxes == ()


@pytest.mark.parametrize("box", [(30, 10, 20, 40), (10, 30, 40, 20), (-1, 0, 5, 5), (1, 2, 3)])
def test_a_box_that_is_none_is_named(box: tuple[int, ...]) -> None:
    """Such as one of x, y, width, height."""
    word = {"text": "total", "box": box, "field": None, "segment": 0, "link": -1}
    for column, value in (
        (Regions(), [{"name": "dog", "box": box}]),
        (Expressions(), [{"text": "the dog", "boxes": [box]}]),
        (Words(), [word]),
    ):
        with pytest.raises(UnreadableExample, match=r"left, top, right, bottom in this order.*not \("):
            column.decode(value)
    with pytest.raises(UnreadableExample, match="within 0 to 1000"):
        Words().decode([word | {"box": (0, 0, 1300, 10)}])
    assert Words().decode([word | {"box": (0, 0, 1000, 10)}])[0].box == (0, 0, 1000, 10)


def test_queries_come_from_all_words_and_no_other() -> None:
    torch.manual_seed(0)
    tqg = TextGuidedQueries(16, 3, 4).eval()
    words, mask = torch.randn(2, 5, 16), torch.tensor([[True] * 5, [True, True, False, False, False]])
    queries = tqg(words, mask)
    words[1, 2:] = 99.0
    assert torch.allclose(tqg(words, mask), queries)
    words[1, 1] += 1.0
    assert not torch.allclose(tqg(words, mask)[1], queries[1])
