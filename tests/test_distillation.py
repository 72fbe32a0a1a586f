"""Distillation against torch's own losses and plain formulas; no gradient reaches the teacher."""

import pytest
import torch
from torch.nn import functional as F

from polymodal.layers.momentum_encoder import FeatureQueue
from polymodal.objectives.contrastive import info_nce
from polymodal.objectives.distillation import (
    confident_cross_entropy,
    feature_distillation,
    layer_average,
    logit_distillation,
    momentum_soft_targets,
    relational_distillation,
    soft_and_hard_distillation,
)
from polymodal.objectives.multi_positive import soft_target_contrastive, soft_target_cross_entropy


def logits(seed, rows=6, classes=5):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_are_compared_by_torchs_kl_divergence(temperature):
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    loss = logit_distillation(student, teacher, temperature)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(1).mean())
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(logit_distillation(teacher + 7.0, teacher), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert logit_distillation(student[:0], teacher[:0]) == 0


def test_the_gradient_keeps_its_size_at_a_high_temperature():
    """Hinton et al. 2015, section 2.1: for zero-mean logits it tends to (student - teacher) / classes."""
    student, teacher = (x - x.mean(1, keepdim=True) for x in (logits(0), logits(1)))
    student.requires_grad_()
    logit_distillation(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student - teacher).detach() / 5 / 6, atol=1e-3, rtol=1e-2)


def test_hard_labels_take_the_rest_of_the_weight():
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 4, 0])
    hard, soft = F.cross_entropy(student, labels), logit_distillation(student, teacher, 2.0)
    torch.testing.assert_close(soft_and_hard_distillation(student, teacher, labels, 0.0, 2.0), hard)
    torch.testing.assert_close(soft_and_hard_distillation(student, teacher, labels, 0.3, 2.0), 0.3 * soft + 0.7 * hard)


def features(seed):
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))


def test_features_are_compared_by_torchs_losses():
    student, teacher = features(0), features(1)
    cosine = F.cosine_embedding_loss(student.flatten(0, 1), teacher.flatten(0, 1), torch.ones(12))
    torch.testing.assert_close(feature_distillation(student, teacher), cosine)
    smooth = F.smooth_l1_loss(student, teacher, beta=0.3)
    torch.testing.assert_close(feature_distillation(student, teacher, "smooth_l1", beta=0.3), smooth)
    torch.testing.assert_close(feature_distillation(student, teacher, "mse"), F.mse_loss(student, teacher))


def test_only_positions_of_the_mask_count_and_none_is_no_loss():
    student, teacher, mask = features(0).requires_grad_(), features(1).requires_grad_(), features(2)[..., 0] > 0
    loss = feature_distillation(student, teacher, "mse", mask=mask)
    torch.testing.assert_close(loss, F.mse_loss(student[mask], teacher[mask]))
    loss.backward()
    assert teacher.grad is None
    assert (student.grad[~mask] == 0).all()
    assert feature_distillation(student, teacher, mask=torch.zeros(3, 4, dtype=torch.bool)) == 0


def test_targets_are_normalized_as_by_a_layer_norm():
    student, teacher = features(0), 5 + 3 * features(1)
    normalized = torch.nn.LayerNorm(8)(teacher)
    found = feature_distillation(student, teacher, "mse", normalize_teacher=True)
    torch.testing.assert_close(found, F.mse_loss(student, normalized))
    layers = [teacher, 2 * features(3)]
    expected = (normalized + torch.nn.LayerNorm(8)(layers[1])) / 2
    torch.testing.assert_close(layer_average(layers), expected)


def normalized(seed, dim=4, rows=5):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_similarity_matrices_are_compared_in_both_directions():
    student, teacher = (normalized(0), normalized(1)), (normalized(2, 7), normalized(3, 7))
    loss = relational_distillation(student, teacher, 10.0, 20.0)
    mine, theirs = 10 * student[0] @ student[1].T, 20 * teacher[0] @ teacher[1].T
    expected = sum(
        F.kl_div(m.log_softmax(1), t.softmax(1), reduction="batchmean") for m, t in ((mine, theirs), (mine.T, theirs.T))
    )
    torch.testing.assert_close(loss, expected / 2)
    assert relational_distillation(student, student, 10.0, 10.0) < 1e-6


def test_momentum_targets_mix_the_teachers_similarities_with_one_hot():
    similarity = logits(0, 4, 7)
    assert torch.equal(momentum_soft_targets(similarity, 0.0), torch.eye(4, 7))
    torch.testing.assert_close(momentum_soft_targets(similarity, 1.0), similarity.softmax(1))
    positive = torch.eye(4, 7, dtype=torch.bool)
    positive[0, 5] = True
    mixed = momentum_soft_targets(similarity, 0.4, positive)
    expected = 0.4 * similarity.softmax(1)
    expected[0, [0, 5]] += 0.3
    expected[[1, 2, 3], [1, 2, 3]] += 0.6
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed.sum(1), torch.ones(4))


def test_alpha_zero_is_the_hard_label_loss():
    a, b = normalized(0), normalized(1)
    targets = momentum_soft_targets(20 * normalized(2) @ normalized(3).T, 0.0)
    torch.testing.assert_close(soft_target_contrastive(a, b, targets, 9.0), info_nce(a, b, torch.tensor(9.0)))


def test_the_contrast_of_albef_with_a_queue():
    """One direction, written out as in the paper: online queries, momentum keys and queue, mixed targets."""
    image, image_m, text_m = normalized(0), normalized(1), normalized(2)
    queue = FeatureQueue(6, 4)
    queue.enqueue(normalized(3, rows=6))
    keys = torch.cat([text_m, queue.features])
    targets = momentum_soft_targets(14 * image_m @ keys.T, 0.4)
    loss = soft_target_cross_entropy(image, keys, targets, 14.0)
    one_hot = torch.cat([torch.eye(5), torch.zeros(5, 6)], 1)
    mixed = 0.4 * (14 * image_m @ keys.T).softmax(1) + 0.6 * one_hot
    torch.testing.assert_close(loss, -(mixed * (14 * image @ keys.T).log_softmax(1)).sum(1).mean())


def test_a_teacher_that_is_not_confident_teaches_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.1, 0.7]])
    by_hand = -(labels * logits.log_softmax(1)).sum(1)[[0, 2]].mean()
    assert torch.allclose(confident_cross_entropy(logits, labels, 0.3), by_hand), "of entity 0, too"
    assert confident_cross_entropy(logits, labels, 0.9).item() == 0


def test_confident_cross_entropy_of_bfloat16_is_computed_in_float32():
    student, teacher = logits(0).bfloat16(), logits(1).softmax(1).bfloat16()
    wanted = confident_cross_entropy(student.float(), teacher.float())
    torch.testing.assert_close(confident_cross_entropy(student, teacher), wanted, rtol=1e-6, atol=0)
