"""Losses of masked modelling against plain loops, with nothing masked, and over two processes."""

import pytest
import torch
from torch.nn import functional as F

from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.objectives.masked_modeling import masked_lm_loss, masked_patch_loss


def language_model():
    torch.manual_seed(0)
    return MaskedLMHead(6, 11), torch.randn(4, 5, 6), torch.randn(13, 6), torch.randint(11, (4, 5))


def test_only_masked_tokens_count_and_entries_behind_the_vocabulary_are_not_predicted():
    head, hidden_states, embedding, targets = language_model()
    mask = torch.rand(4, 5) < 0.5
    losses = []
    for row in range(4):
        for position in range(5):
            if mask[row, position]:
                x = F.gelu(head.dense.weight @ hidden_states[row, position] + head.dense.bias)
                logits = embedding[:11] @ F.layer_norm(x, (6,)) + head.bias
                losses.append(logits.logsumexp(0) - logits[targets[row, position]])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(masked_lm_loss(head, hidden_states, embedding, targets, mask), expected)
    assert [name for name, _ in head.named_parameters()] == [
        "bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias"
    ]  # fmt: skip


def test_losses_are_zero_with_zero_gradient_where_nothing_is_masked():
    head, hidden_states, embedding, targets = language_model()
    hidden_states.requires_grad_()
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    prediction = torch.randn(4, 5, 7, requires_grad=True)
    loss = masked_lm_loss(head, hidden_states, embedding, targets, nothing)
    loss = loss + masked_patch_loss(prediction, torch.randn(4, 5, 7), nothing)
    loss.backward()
    assert loss == 0
    for leaf in (hidden_states, prediction):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("norm_pix", [False, True])
def test_patches_are_compared_one_by_one_where_they_are_masked(norm_pix):
    torch.manual_seed(1)
    prediction, patches, mask = torch.randn(3, 8, 12), 5 + 2 * torch.randn(3, 8, 12), torch.rand(3, 8) < 0.6
    errors = []
    for image in range(3):
        for patch in range(8):
            if mask[image, patch]:
                target = patches[image, patch]
                if norm_pix:
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((prediction[image, patch] - target).square().mean())
    expected = torch.stack(errors).mean()
    torch.testing.assert_close(masked_patch_loss(prediction, patches, mask, norm_pix), expected)
    changed = patches + 100 * torch.randn(patches.shape) * ~mask[..., None]  # visible targets have no influence
    torch.testing.assert_close(masked_patch_loss(prediction, changed, mask, norm_pix), expected)


def test_a_patch_of_one_color_has_a_finite_target():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert masked_patch_loss(torch.zeros(1, 2, 4), torch.ones(1, 2, 4), mask) == 0
