"""Every connector keeps the one interface: (batch, positions, width) to (batch, num_tokens, width of the model)."""

from __future__ import annotations

import typing

import pytest
import torch

from polymodal.errors import UserError
from polymodal.layers.token_pooling import average_pool, pixel_shuffle
from polymodal.models.connector import OF_GRIDS, ConnectorConfig, ConnectorKind

KINDS = typing.get_args(ConnectorKind)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_as_many_as_the_configuration_says_and_all_of_it_learns(kind: ConnectorKind) -> None:
    torch.manual_seed(0)
    config = ConnectorConfig(kind, num_queries=9, depth=1, hidden_dim=16)
    own = config.build(12, 20)
    grids: list[tuple[int, ...]] = [(4, 4), (6, 8)] if kind in OF_GRIDS else [(4, 4), (10,), (2, 3, 4)]
    for grid in grids:
        tokens = torch.randn(2, torch.Size(grid).numel(), 12)
        assert own(tokens, grid).shape == (2, config.num_tokens(grid), 20)
    own(tokens, grid).square().sum().backward()
    unused = [name for name, weight in own.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in unused if not name.endswith("key_value.bias")]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_GRIDS])
def test_padding_has_no_influence(kind: ConnectorKind) -> None:
    torch.manual_seed(0)
    own = ConnectorConfig(kind, num_queries=4, depth=1, hidden_dim=16).build(12, 20)
    tokens = torch.randn(1, 8, 12)
    mask = torch.arange(8)[None] < 5
    padded, alone = own(tokens, (8,), mask), own(tokens[:, :5], (5,))
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone)


def test_pooling_kinds_are_their_pooling_and_an_mlp() -> None:
    tokens = torch.randn(2, 16, 12)
    own = ConnectorConfig("average_pool", num_queries=4).build(12, 20)
    torch.testing.assert_close(own(tokens, (4, 4)), own.projection(average_pool(tokens, (4, 4), (2, 2))))
    own = ConnectorConfig("pixel_shuffle").build(12, 20)
    torch.testing.assert_close(own(tokens, (4, 4)), own.projection(pixel_shuffle(tokens, (4, 4))))
    own = ConnectorConfig("linear").build(12, 20)
    assert [tuple(weight.shape) for weight in own.parameters()] == [(20, 12), (20,)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="square number of queries, not 12"):
        ConnectorConfig("c_abstractor", num_queries=12)
    with pytest.raises(UserError, match="3 x 4 patches does not divide"):
        ConnectorConfig("pixel_shuffle").num_tokens((3, 4))
    with pytest.raises(UserError, match="rows and columns"):
        ConnectorConfig("average_pool").num_tokens((16,))
    own = ConnectorConfig("average_pool", num_queries=4).build(8, 8)
    with pytest.raises(UserError, match="16 tokens are no grid of 3 x 4"):
        own(torch.randn(1, 16, 8), (3, 4))
    with pytest.raises(UserError, match="full grid"):
        own(torch.randn(1, 16, 8), (4, 4), torch.arange(16)[None] < 9)
