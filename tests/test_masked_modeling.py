"""Losses of masked modelling against plain loops, with nothing masked, and over two processes."""

import math

import pytest
import torch
from torch.nn import functional as F

from polymodal.layers.masked_lm_head import MaskedLMHead
from polymodal.modalities.table import TableRows
from polymodal.objectives.masked_modeling import masked_lm_loss, masked_patch_loss, masked_table_loss


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


def table_rows(batch: int = 6, numeric: int = 3, seed: int = 0) -> TableRows:
    generator = torch.Generator().manual_seed(seed)
    categories = torch.stack([torch.randint(n, (batch,), generator=generator) for n in (3, 2)], dim=1)
    return TableRows(torch.randn(batch, numeric, generator=generator), categories)


def test_table_reconstruction_counts_masked_cells_that_hold_a_value() -> None:
    rows = table_rows()
    rows.numbers[0, 0], rows.categories[1, 1] = math.nan, -1
    masked = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.6
    masked[0, 0] = masked[1, 4] = True
    numbers = torch.randn(6, 3, requires_grad=True)
    logits = torch.randn(6, 2, 5, requires_grad=True)
    loss = masked_table_loss(numbers, logits, rows, (0, 3), masked)
    squares, entropies = [], []
    for row in range(6):
        for column in range(3):
            if masked[row, column] and not rows.numbers[row, column].isnan():
                squares.append((numbers[row, column] - rows.numbers[row, column]) ** 2)
        for column, start in enumerate((0, 3)):
            if masked[row, 3 + column] and rows.categories[row, column] >= 0:
                entropies.append(F.cross_entropy(logits[row, column], rows.categories[row, column] + start))
    torch.testing.assert_close(loss, (torch.stack(squares).mean() + torch.stack(entropies).mean()) / 2)
    loss.backward()
    assert numbers.grad[0, 0] == 0
    assert (numbers.grad[~masked[:, :3]] == 0).all()


def test_table_reconstruction_is_zero_without_masked_cells() -> None:
    numbers, logits = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, 5, requires_grad=True)
    loss = masked_table_loss(numbers, logits, table_rows(), (0, 3), torch.zeros(6, 5, dtype=torch.bool))
    assert loss == 0
    loss.backward()
    assert numbers.grad.isfinite().all()
