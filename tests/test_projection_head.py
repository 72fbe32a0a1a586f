"""Projection heads: layers, initialization, norms over one process and over two."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.projection_head import LinearProjection, ProjectionHead


def kinds(head):
    return [type(layer).__name__ for layer in head]


def test_a_linear_projection_has_clips_initialization():
    torch.manual_seed(0)
    projection = LinearProjection(400, 300)
    assert [name for name, _ in projection.named_parameters()] == ["weight"]
    assert projection.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    x = torch.randn(3, 5, 400)
    torch.testing.assert_close(projection(x), x @ projection.weight.T)
    projection.normalize = True
    torch.testing.assert_close(projection(x).norm(dim=-1), torch.ones(3, 5))


def test_norms_and_activations_stand_between_the_layers():
    middle = ["Linear", "SyncBatchNorm1d", "ReLU"]
    assert kinds(ProjectionHead([4, 8, 8, 2])) == [*middle, *middle, "Linear"]
    assert kinds(ProjectionHead([4, 8, 2], last_norm=True)) == [*middle, "Linear", "SyncBatchNorm1d"]
    assert kinds(ProjectionHead([4, 8, 2], "layer", activation="gelu")) == ["Linear", "LayerNorm", "GELU", "Linear"]
    assert kinds(ProjectionHead([4, 8, 2], None)) == ["Linear", "ReLU", "Linear"]
    assert kinds(ProjectionHead([4, 2])) == ["Linear"]


def test_biases_stand_only_where_no_norm_follows():
    def biases(head):
        return [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)]

    assert biases(ProjectionHead([4, 8, 2])) == [False, False]
    assert biases(ProjectionHead([4, 8, 2], bias=True)) == [False, True]
    assert biases(ProjectionHead([4, 8, 2], bias=True, last_norm=True)) == [False, False]
    assert biases(ProjectionHead([4, 8, 2], None, bias=True)) == [True, True]


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_last_norm_without_scale_standardizes_the_output(norm):
    head = ProjectionHead([6, 8, 5], norm, last_norm=True, last_norm_affine=False)
    assert sum(p.numel() for p in head[-1].parameters()) == 0
    y = head(torch.randn(64, 6))
    over = 0 if norm == "batch" else 1
    torch.testing.assert_close(y.mean(over), torch.zeros(y.shape[1 - over]), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(over, correction=0), torch.ones(y.shape[1 - over]), atol=0.01, rtol=0)


def test_outputs_are_normalized_on_demand():
    head = ProjectionHead([6, 8, 5], bias=True, normalize=True)
    torch.testing.assert_close(head(torch.randn(9, 6)).norm(dim=1), torch.ones(9))


def test_heads_that_cannot_be_are_errors():
    with pytest.raises(UserError, match="an input and an output"):
        ProjectionHead([4])
    with pytest.raises(UserError, match="has a norm"):
        ProjectionHead([4, 8, 2], None, last_norm=True)


def test_a_head_equals_the_same_layers_of_torch():
    torch.manual_seed(1)
    head = ProjectionHead([6, 8, 5])
    x = torch.randn(16, 6)
    hidden = F.batch_norm(x @ head[0].weight.T, None, None, training=True)
    torch.testing.assert_close(head(x), F.relu(hidden) @ head[3].weight.T)


@pytest.mark.parametrize("norm", ["batch", "layer", None])
def test_what_precedes_the_features_is_rows_of_a_head(norm):
    """A batch norm took the second axis for the features."""
    torch.manual_seed(0)
    head, x = ProjectionHead([6, 8, 5], norm, normalize=True).eval(), torch.randn(3, 4, 6)
    torch.testing.assert_close(head(x), torch.stack([head(row) for row in x]))
    torch.testing.assert_close(head.train()(x), head(x.flatten(0, 1)).unflatten(0, (3, 4)))
