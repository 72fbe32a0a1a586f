"""Activation checkpointing: the same outputs and gradients, with dropout, from fewer kept activations."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from polymodal.encoders.multiway_moe import MultiwayMoEConfig, MultiwayMoEEncoder
from polymodal.layers.cross_attention import CrossAttentionTransformer
from polymodal.layers.multiway import MultiwayTransformer
from polymodal.training.activation_checkpointing import checkpoint_activations

LENGTH = 6


def passed(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> tuple[dict[str, Tensor], int]:
    """The output and gradients of a training pass, and how many values it keeps for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = run(model)
    output.square().sum().backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"output": output, **gradients}, kept


def fused(model: nn.Module) -> Tensor:
    x, mask = torch.ones(2, LENGTH, 16), torch.ones(2, LENGTH, dtype=torch.bool)
    return torch.cat(model(x, x, mask), dim=1)


def moe(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 3, 8, 8)).image


@pytest.mark.parametrize(
    ("build", "run"),
    [
        (lambda: MultiwayTransformer(16, 4, 2, drop_path_rate=0.5), fused),
        (
            lambda: MultiwayMoEEncoder(
                MultiwayMoEConfig(image_size=8, patch_size=4, width=16, depth=4, num_heads=2, drop_path_rate=0.5),
                vocab_size=9,
            ),
            moe,
        ),
        (lambda: CrossAttentionTransformer(16, 4, 2, 16), lambda model: model(*torch.ones(2, 2, LENGTH, 16))),
    ],
    ids=["multiway", "multiway_moe", "cross_attention"],
)
def test_gradients_are_the_same_and_fewer_activations_are_kept(build, run) -> None:
    torch.manual_seed(0)
    model = build()
    other = deepcopy(model)
    checkpoint_activations(other)
    (expected, all_kept), (found, kept) = passed(model, run), passed(deepcopy(other), run)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert kept < all_kept / 2
    assert other.state_dict().keys() == model.state_dict().keys()


def test_a_batch_is_counted_once_in_running_statistics() -> None:
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
    model = nn.Sequential()
    model.blocks = blocks
    checkpoint_activations(model)
    x = torch.randn(8, 4, requires_grad=True)
    for block in blocks:
        x = block(x)
    x.sum().backward()
    assert [int(block[1].num_batches_tracked) for block in blocks] == [1, 1]
