"""Losses against brute-force formulas, hand-computed cases and automatic differentiation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from polymodal.objectives import contrastive
from polymodal.objectives.contrastive import info_nce, siglip_loss
from polymodal.objectives.non_contrastive import barlow_twins, negative_cosine_similarity, sinkhorn, swav_loss


def vectors(batch: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(batch, dim, generator=generator, dtype=torch.float64), dim=-1)


def plain_info_nce(a, b, scale, smoothing):
    logits, labels = scale * a @ b.T, torch.arange(len(a))
    rows = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (rows + F.cross_entropy(logits.T, labels, label_smoothing=smoothing)) / 2


def plain_sigmoid(a, b, scale, bias):
    signs = 2 * torch.eye(len(a), dtype=a.dtype) - 1
    return -F.logsigmoid(signs * (scale * a @ b.T + bias)).sum() / len(a)


def gradients(loss, *inputs):
    leaves = [value.clone().requires_grad_() for value in inputs]
    value = loss(*leaves)
    return value, torch.autograd.grad(3 * value, leaves)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 64)
)
def test_info_nce_equals_the_plain_formula_for_any_block_size(batch, dim, seed, smoothing, block):
    a, b, scale = vectors(batch, dim, seed), vectors(batch, dim, seed + 1), torch.tensor(7.0, dtype=torch.float64)
    before, contrastive.BLOCK = contrastive.BLOCK, block
    try:
        value, found = gradients(lambda *x: info_nce(*x, smoothing), a, b, scale)
    finally:
        contrastive.BLOCK = before
    expected, wanted = gradients(lambda *x: plain_info_nce(*x, smoothing), a, b, scale)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, wanted)


def plain_grouped_info_nce(a, b, scale, group, smoothing):
    """Cross-entropy with a target that all rows of a group share, in both directions."""
    logits, same = scale * a @ b.T, (group[:, None] == group).double()
    target = (1 - smoothing) * same / same.sum(1, keepdim=True) + smoothing / len(a)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.2]),
    st.integers(1, 64),
)
def test_rows_of_a_group_are_matches_of_each_other(numbers, seed, smoothing, block):
    a, b = vectors(len(numbers), 6, seed), vectors(len(numbers), 6, seed + 1)
    scale, group = torch.tensor(7.0, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
    before, contrastive.BLOCK = contrastive.BLOCK, block
    try:
        value, found = gradients(lambda *x: info_nce(*x, smoothing, group), a, b, scale)
    finally:
        contrastive.BLOCK = before
    expected, wanted = gradients(lambda *x: plain_grouped_info_nce(*x, group, smoothing), a, b, scale)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, wanted)


def test_rows_that_are_all_apart_need_no_groups():
    a, b, scale = vectors(9, 4, 0), vectors(9, 4, 1), torch.tensor(5.0, dtype=torch.float64)
    apart = torch.arange(9, dtype=torch.float64)
    torch.testing.assert_close(info_nce(a, b, scale, labels=apart), info_nce(a, b, scale))


def _grouped_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    own = slice(4 * rank, 4 * rank + 4)
    a, b = (vectors(8, 5, seed)[own].requires_grad_() for seed in (0, 1))
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    loss = info_nce(a, b, scale, labels=GROUPS[own])
    loss.backward()
    torch.save([loss.detach(), a.grad, b.grad, scale.grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


GROUPS = torch.tensor([0, 1, 2, 0, 1, 1, 3, 4], dtype=torch.float64)


def test_groups_reach_over_processes(tmp_path):
    torch.multiprocessing.spawn(_grouped_on, (str(tmp_path),), nprocs=2)
    (one, *grads), (other, *others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    inputs = vectors(8, 5, 0), vectors(8, 5, 1), torch.tensor(6.0, dtype=torch.float64)
    leaves = [value.clone().requires_grad_() for value in inputs]
    expected = plain_grouped_info_nce(*leaves, GROUPS, 0.0)
    expected.backward()
    torch.testing.assert_close((one + other) / 2, expected.detach())
    for number in (0, 1):  # each process means over its own rows, and the trainer means over processes
        torch.testing.assert_close(torch.cat([grads[number], others[number]]) / 2, leaves[number].grad)
    torch.testing.assert_close((grads[2] + others[2]) / 2, leaves[2].grad)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000), st.integers(1, 64))
def test_sigmoid_loss_equals_the_plain_formula_for_any_block_size(batch, dim, seed, block):
    a, b = vectors(batch, dim, seed), vectors(batch, dim, seed + 1)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    before, contrastive.BLOCK = contrastive.BLOCK, block
    try:
        value, found = gradients(siglip_loss, a, b, scale, bias)
    finally:
        contrastive.BLOCK = before
    expected, wanted = gradients(plain_sigmoid, a, b, scale, bias)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, wanted)


def test_losses_by_hand():
    one = torch.eye(2)
    # logits [[s, 0], [0, s]]: each row's loss is log(1 + e^-s)
    assert info_nce(one, one, torch.tensor(2.0)).item() == pytest.approx(math.log(1 + math.exp(-2)))
    # matching pair: softplus(-(2 - 1)); other pair: softplus(0 - 1)
    by_hand = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))
    assert siglip_loss(one, one, torch.tensor(2.0), torch.tensor(-1.0)).item() == pytest.approx(by_hand)
    assert info_nce(one[:1], one[:1], torch.tensor(5.0)).item() == pytest.approx(0, abs=1e-6)


def test_info_nce_is_symmetric_in_the_modalities():
    a, b, scale = vectors(9, 4, 0), vectors(9, 4, 1), torch.tensor(4.0, dtype=torch.float64)
    torch.testing.assert_close(info_nce(a, b, scale), info_nce(b, a, scale))


def test_prediction_loss_gives_no_gradient_to_its_target_and_lies_between_0_and_4():
    prediction, target = vectors(5, 3, 0).requires_grad_(), vectors(5, 3, 1).requires_grad_()
    negative_cosine_similarity(prediction, target).backward()
    assert target.grad is None
    assert prediction.grad is not None
    assert negative_cosine_similarity(target, target).item() == pytest.approx(0)
    assert negative_cosine_similarity(target, -target).item() == pytest.approx(4)


def test_barlow_twins_is_zero_only_at_the_identity():
    orthonormal = torch.linalg.qr(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))[0] * 8**0.5
    assert barlow_twins(orthonormal, orthonormal).item() == pytest.approx(0, abs=1e-5)
    assert barlow_twins(orthonormal, orthonormal.roll(1, 1)).item() > 1


def test_sinkhorn_gives_each_sample_one_and_targets_about_the_same():
    assignment = sinkhorn(vectors(12, 5, 0) @ vectors(6, 5, 1).T, temperature=0.5, iterations=50)
    torch.testing.assert_close(assignment.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(assignment.sum(0), torch.full((6,), 2.0, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def test_assignment_loss_is_cross_entropy_without_gradient_into_the_assignment():
    logits, target = vectors(4, 3, 0).requires_grad_(), vectors(4, 3, 1).softmax(-1).requires_grad_()
    loss = swav_loss(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    loss.backward()
    assert target.grad is None
