"""Dense detection: ATSS and losses in plain loops, feature pyramid, dynamic head, suppression, texts of phrases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.data.columns.regions import PhraseBox
from polymodal.data.phrase_texts import caption_phrases, phrase_targets, prompt_phrases
from polymodal.layers.dynamic_head import DeformableConvolution, DensePrediction, DynamicHeadBlock, TokenAlignment
from polymodal.layers.feature_pyramid import FeaturePyramid
from polymodal.modalities.boxes import PaddedBoxes, cxcywh_to_xyxy
from polymodal.modalities.text import TextTokenizer
from polymodal.objectives.dense_detection import (
    NO_OBJECT,
    atss_assign,
    centerness_of,
    decode_boxes,
    dense_detection_losses,
    encode_boxes,
    non_maximum_suppression,
    square_anchors,
)

ANCHORS = square_anchors([(8, 8), (4, 4), (2, 2)], [8, 16, 32], 64, 4.0)
BOXES = [[0.3, 0.35, 0.4, 0.5], [0.7, 0.6, 0.5, 0.6], [0.45, 0.5, 0.9, 0.8]]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    sides = [
        min(a[n] + a[n + 2] / 2, b[n] + b[n + 2] / 2) - max(a[n] - a[n + 2] / 2, b[n] - b[n + 2] / 2) for n in (0, 1)
    ]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_atss_in_plain_loops() -> None:
    anchors, best = ANCHORS.boxes.tolist(), [(-1.0, NO_OBJECT)] * len(ANCHORS.boxes)
    for number, box in enumerate(BOXES):
        candidates, first = [], 0
        for count in ANCHORS.counts:
            places = range(first, first + count)
            candidates += sorted(places, key=lambda n, b=box: math.dist(anchors[n][:2], b[:2]))[:9]
            first += count
        ious = [overlap(anchors[place], box) for place in candidates]
        threshold = statistics.mean(ious) + statistics.stdev(ious)
        for place, iou in zip(candidates, ious, strict=True):
            inside = all(abs(anchors[place][axis] - box[axis]) < box[axis + 2] / 2 for axis in (0, 1))
            if iou >= threshold and inside and iou > best[place][0]:
                best[place] = (iou, number)
    assigned = atss_assign(ANCHORS, torch.tensor(BOXES))
    assert assigned.tolist() == [number for _, number in best]
    assert {NO_OBJECT, 0, 1, 2} == set(assigned.tolist())
    assert set(atss_assign(ANCHORS, torch.zeros(0, 4)).tolist()) == {NO_OBJECT}


def test_losses_in_plain_loops() -> None:
    torch.manual_seed(0)
    places, targets = len(ANCHORS.boxes), PaddedBoxes(torch.tensor([BOXES, BOXES]), torch.tensor([3, 0]))
    prediction = DensePrediction(torch.zeros(2, places, 1), torch.randn(2, places, 4), torch.randn(2, places))
    logits, mask = torch.randn(2, places, 6), torch.tensor([[True] * 5 + [False], [True] * 3 + [False] * 3])
    spans = torch.tensor([[[1, 3], [4, 5], [1, 2]]] * 2)
    token = box = centerness = weights = positives = 0.0
    for example, some in enumerate((BOXES, [])):
        assigned = atss_assign(ANCHORS, torch.tensor(some).reshape(-1, 4)).tolist()
        for place, number in enumerate(assigned):
            for position in range(6):
                p = float(logits[example, place, position].sigmoid())
                hit = number != NO_OBJECT and spans[0, number, 0] <= position < spans[0, number, 1]
                if mask[example, position]:
                    token -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
            if number == NO_OBJECT:
                continue
            x, y, w, h = ANCHORS.boxes[place].tolist()
            left, top, right, bottom = cxcywh_to_xyxy(torch.tensor(some[number])).tolist()
            across, along = sorted((x - left, right - x)), sorted((y - top, bottom - y))
            weight = math.sqrt(across[0] / across[1] * along[0] / along[1])
            dx, dy, dw, dh = prediction.deltas[example, place].tolist()
            guess = [x + dx / 10 * w, y + dy / 10 * h, w * math.exp(dw / 5), h * math.exp(dh / 5)]
            corners = cxcywh_to_xyxy(torch.tensor(guess)).tolist()
            hull = (max(corners[2], right) - min(corners[0], left)) * (max(corners[3], bottom) - min(corners[1], top))
            iou = overlap(guess, some[number])
            union = (guess[2] * guess[3] + some[number][2] * some[number][3]) / (1 + iou)
            box, weights = box + weight * (1 - iou + (hull - union) / hull), weights + weight
            p = float(prediction.centerness[example, place].sigmoid())
            centerness -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
            positives += 1
    losses = dense_detection_losses(prediction, logits, mask, ANCHORS, targets, spans)
    assert float(losses["token"]) == pytest.approx(token / positives, rel=1e-4)
    assert float(losses["box"]) == pytest.approx(2 * box / weights, rel=1e-4)
    assert float(losses["centerness"]) == pytest.approx(centerness / positives, rel=1e-4)
    nothing = dense_detection_losses(prediction, logits, mask, ANCHORS, PaddedBoxes.of([[], []]), spans)
    assert float(nothing["box"]) == float(nothing["centerness"]) == 0
    assert float(nothing["token"]) > 0


def test_boxes_are_decoded_and_suppressed() -> None:
    boxes = torch.tensor(BOXES)
    anchors = ANCHORS.boxes[[0, 70, 82]]
    assert torch.allclose(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes, atol=1e-6)
    assert torch.allclose(centerness_of(boxes, boxes), torch.ones(3))
    corners = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.55], [0.5, 0.5, 1, 1], [0.4, 0.4, 1, 1]])
    scores = torch.tensor([0.5, 0.9, 0.3, 0.2])
    assert non_maximum_suppression(corners, scores, 9).tolist() == [1, 2]
    assert non_maximum_suppression(corners, scores, 1).tolist() == [1]


def test_the_pyramid_adds_coarser_maps_and_goes_on() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([3, 5], 4, 2)
    fine, coarse = torch.randn(1, 3, 7, 7), torch.randn(1, 5, 4, 4)
    levels = pyramid([fine, coarse])
    assert [level.shape[-1] for level in levels] == [7, 4, 2, 1]
    top = pyramid.lateral[1](coarse)
    index = torch.arange(7) * 4 // 7
    expected = pyramid.output[0](pyramid.lateral[0](fine) + top[..., index, :][..., index])
    assert torch.allclose(levels[0], expected, atol=1e-5)
    assert torch.allclose(levels[3], pyramid.extra[1](levels[2].relu()), atol=1e-6)


def test_a_deformable_convolution_samples_bilinearly_with_zeros_outside() -> None:
    """Without offsets it is a convolution; a tap between four tokens has their weighted mean."""
    torch.manual_seed(0)
    for stride in (1, 2):
        layer, x = DeformableConvolution(4, stride, 2), torch.randn(2, 4, 6, 5)
        plain = layer.convolution(x)
        offset, weight = torch.zeros(2, 18, *plain.shape[-2:]), torch.ones(2, 9, *plain.shape[-2:])
        assert torch.allclose(layer(x, offset, weight), layer.norm(plain), atol=1e-5)
    offset[0, 8, 1, 1], offset[0, 9, 1, 1] = 0.25, 1.5  # of the tap in the middle: down, and to the right
    tap = layer.sample(x, offset)[0, :, 4, 1, 1]  # at row 2 + 0.25 and column 2 + 1.5
    expected = 0.75 * (x[0, :, 2, 3] + x[0, :, 2, 4]) / 2 + 0.25 * (x[0, :, 3, 3] + x[0, :, 3, 4]) / 2
    assert torch.allclose(tap, expected, atol=1e-5)


def test_a_block_of_the_dynamic_head_reads_adjacent_levels_alone() -> None:
    torch.manual_seed(0)
    block, levels = DynamicHeadBlock(8, 2), [torch.randn(1, 8, side, side, requires_grad=True) for side in (8, 4, 2)]
    block(levels)[0].sum().backward()
    assert levels[1].grad is not None
    assert levels[2].grad is None


def test_alignment_of_tokens_and_its_prior() -> None:
    torch.manual_seed(0)
    layer, features, tokens = TokenAlignment(4, 6), torch.randn(1, 3, 4), torch.randn(1, 5, 6)
    with torch.no_grad():
        layer.token_bias.normal_()
        layer.log_scale.fill_(0.5)
    logits = layer(features, tokens)
    t = F.normalize(tokens[0, 2], dim=0)
    expected = features[0, 1] @ (layer.projection.weight @ t / 2 + layer.projection.bias) / math.exp(0.5)
    assert float(logits[0, 1, 2]) == pytest.approx(float(expected + t @ layer.token_bias + layer.bias), rel=1e-4)
    assert float(layer.bias.sigmoid()) == pytest.approx(0.01, rel=1e-5)
    assert float(layer(1e9 * features, tokens).abs().max()) == 50_000


def test_all_sub_words_of_a_phrase_are_positive_and_separators_never() -> None:
    box = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)]
    regions = [PhraseBox("cat", box[0]), PhraseBox("small cat", box[1]), PhraseBox("cat", box[2])]
    caption = caption_phrases("A Cat, a small cat and a catalog", regions)
    assert [(phrase.text, len(phrase.boxes)) for phrase in caption] == [
        *(("A", 0), ("cat", 2), (", a", 0)),
        *(("small cat", 1), ("and a catalog", 0)),
    ]
    prompt = prompt_phrases(regions, ["bus", "cat"], np.random.default_rng(0))
    assert sorted(phrase.text for phrase in prompt) == [".", ".", ".", "bus", "cat", "small cat"]
    tokenizer = TextTokenizer.train(["a b"], 300, 24)
    for phrases in (caption, prompt):
        targets = phrase_targets([phrases, []], tokenizer)
        assert targets.boxes.counts.tolist() == [3, 0]
        ids = targets.text.ids[0].tolist()
        for phrase in phrases:
            expected = [place for place in range(3) if torch.allclose(*_corners(targets, place, phrase.boxes))]
            for place in expected:
                first, last = targets.spans[0, place].tolist()
                assert ids[first:last] == tokenizer([phrase.text]).ids[0, 1:-1].tolist()
    cut = phrase_targets([caption], TextTokenizer.train(["a b"], 300, 8))
    assert cut.boxes.counts.tolist() == [2]


def _corners(targets: object, place: int, boxes: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    found_box = cxcywh_to_xyxy(targets.boxes.boxes[0, place])  # type: ignore[attr-defined]
    near = [torch.tensor(box) for box in boxes if torch.allclose(torch.tensor(box), found_box, atol=1e-5)]
    return found_box, near[0] if near else found_box + 9
