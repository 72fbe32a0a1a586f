"""Losses with several positives against plain loops, InfoNCE in the limit of one, and over two processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polymodal.layers.momentum_encoder import FeatureQueue
from polymodal.objectives import multi_positive
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.multi_positive import (
    multi_positive_cross_entropy,
    multi_positive_info_nce,
    soft_target_contrastive,
    supcon_loss,
)


def vectors(rows: int, seed: int, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def gradients(loss, *inputs):
    leaves = [value.clone().requires_grad_() for value in inputs]
    value = loss(*leaves)
    return value, torch.autograd.grad(3 * value, leaves)


SCALE = torch.tensor(7.0, dtype=torch.float64)


def plain_supcon(features, scale, labels):
    """Equation 2, term by term."""
    anchors = []
    for i in range(len(labels)):
        others = [a for a in range(len(labels)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            normalizer = torch.stack([(scale * features[i] @ features[a]).exp() for a in others]).sum()
            terms = [((scale * features[i] @ features[p]).exp() / normalizer).log() for p in positives]
            anchors.append(-torch.stack(terms).mean())
    return torch.stack(anchors).mean() if anchors else (features * scale).sum() * 0


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 1000), st.integers(1, 64))
def test_supcon_is_its_equation_for_any_block_size(labels, seed, block):
    labels, features = torch.tensor(labels), vectors(len(labels), seed)
    before, multi_positive.BLOCK = multi_positive.BLOCK, block
    try:
        value, found = gradients(lambda x, s: supcon_loss(x, labels, s), features, SCALE)
    finally:
        multi_positive.BLOCK = before
    expected, wanted = gradients(lambda x, s: plain_supcon(x, s, labels), features, SCALE)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("block", [1, 20, 10_000])
def test_equal_labels_share_the_target(block, monkeypatch):
    """Of each direction by itself, and of both at once."""
    monkeypatch.setattr(multi_positive, "BLOCK", block)
    labels = torch.tensor([0, 1, 0, 2, 2, 2, 3])

    def plain(a, b, scale):
        logits, terms = scale * a @ b.T, []
        for i in range(7):
            positives = [j for j in range(7) if labels[j] == labels[i]]
            for row in (logits[i], logits[:, i]):
                terms.append(-torch.stack([row.log_softmax(0)[j] for j in positives]).mean())
        return torch.stack(terms).mean()

    def in_turn(a, b, scale):
        return sum(multi_positive_cross_entropy(*pair, labels, labels, scale) for pair in ((a, b), (b, a))) / 2

    inputs = vectors(7, 0), vectors(7, 1), SCALE
    expected, wanted = gradients(plain, *inputs)
    for loss in (in_turn, lambda a, b, s: multi_positive_info_nce(a, b, labels, s)):
        value, found = gradients(loss, *inputs)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(found, wanted)


def test_one_positive_each_is_info_nce():
    inputs = vectors(7, 0), vectors(7, 1), SCALE
    value, found = gradients(lambda a, b, s: soft_target_contrastive(a, b, torch.eye(7).double(), s), *inputs)
    expected, wanted = gradients(info_nce, *inputs)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, wanted)


def test_soft_targets_are_cross_entropies_in_both_directions():
    torch.manual_seed(0)
    forth, back = torch.rand(5, 5).double().softmax(1), torch.rand(5, 5).double().softmax(1)
    a, b = vectors(5, 0), vectors(5, 1)
    logits = 7 * a @ b.T
    expected = (F.cross_entropy(logits, forth) + F.cross_entropy(logits.T, back)) / 2
    torch.testing.assert_close(soft_target_contrastive(a, b, forth, SCALE, back), expected)


def test_edges_of_a_bipartite_graph_are_normalized_and_lonely_rows_do_not_count():
    weights = torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).double()
    a, b = vectors(3, 0), vectors(4, 1)
    logits = 7 * a @ b.T
    forth = [-(weights[i] / weights[i].sum() * logits[i].log_softmax(0)).sum() for i in (0, 1)]
    back = [-(weights[:, j] / weights[:, j].sum() * logits[:, j].log_softmax(0)).sum() for j in (0, 1, 3)]
    expected = (torch.stack(forth).mean() + torch.stack(back).mean()) / 2
    value, found = gradients(lambda a, b: soft_target_contrastive(a, b, weights, 7.0), a, b)
    torch.testing.assert_close(value, expected)
    assert all(gradient.isfinite().all() for gradient in found)


def test_no_positive_anywhere_is_no_loss_and_no_gradient():
    value, (gradient,) = gradients(lambda x: supcon_loss(x, torch.arange(3), 5.0), vectors(3, 0))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_queued_features_are_candidates_and_positives_by_their_label():
    queue = FeatureQueue(4, 6)
    queue.enqueue(vectors(4, 5).float(), torch.tensor([1, 9, 9, 0]))
    query, key, labels = vectors(2, 0).float(), vectors(2, 1).float(), torch.tensor([0, 1])
    loss = multi_positive_cross_entropy(
        query, torch.cat([key, queue.features]), labels, torch.cat([labels.double(), queue.labels]), 7.0
    )
    logits = 7 * query @ torch.cat([key, vectors(4, 5).float()]).T
    log_p = logits.log_softmax(1)
    expected = -(log_p[0, [0, 5]].mean() + log_p[1, [1, 2]].mean()) / 2
    torch.testing.assert_close(loss, expected)


def test_logits_are_not_held_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(multi_positive, "BLOCK", 64)
    held = []
    features = vectors(64, 0).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        supcon_loss(features, torch.arange(64) // 2, 5.0)
    assert max(held) <= features.numel()


@pytest.mark.parametrize("bag", [1, 3])
def test_mil_nce_against_plain_loops(bag: int) -> None:
    """As the released VATT: both directions in one denominator; rows that lack a modality take no part."""
    a, b = vectors(5, 0), vectors(5 * bag, 1).unflatten(0, (5, bag))
    for valid in (torch.ones(5, dtype=torch.bool), torch.tensor([True, False, True, True, False])):
        kept, terms = valid.nonzero().flatten().tolist(), []
        for i in kept:
            own = sum((SCALE * a[i] @ b[i, p]).exp() for p in range(bag))
            every = [(SCALE * a[i] @ b[j, p]).exp() + (SCALE * a[j] @ b[i, p]).exp() for j in kept for p in range(bag)]
            terms.append(-(own / sum(every)).log())
        value, found = gradients(lambda a, b, mask=valid: multi_positive.mil_nce(a, b, SCALE, mask), a, b)
        torch.testing.assert_close(value, torch.stack(terms).mean())
        assert all(not gradient[~valid].any() and gradient.isfinite().all() for gradient in found)
    nothing = torch.zeros(5, dtype=torch.bool)
    value, found = gradients(lambda a, b: multi_positive.mil_nce(a, b, SCALE, nothing), a, b)
    assert value == 0
    assert not any(gradient.any() for gradient in found)
