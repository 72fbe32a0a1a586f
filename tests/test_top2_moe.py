"""Top-2 mixture of experts: EVE's released code, a plain loop, limiting cases, and padding left out of the dispatch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.layers.top2_moe import Top2MoE, quick_gelu, top2_routing

GOLDEN = Path(__file__).parent / "golden" / "eve.npz"


def moe(num_experts: int = 4, num_modalities: int = 2, **options: float) -> Top2MoE:
    torch.manual_seed(0)
    layer = Top2MoE(8, 16, num_experts, num_modalities, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return layer


def tokens(count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, generator=generator), torch.randint(2, (count,), generator=generator)


def in_a_loop(layer: Top2MoE, x: torch.Tensor, modality: torch.Tensor | None, capacity: float) -> torch.Tensor:
    """Every token in turn: all first choices are placed before the second ones."""
    given = x if modality is None or layer.modality_embedding is None else x + layer.modality_embedding[modality]
    gates = (given @ layer.router.weight.T).softmax(1)
    best = gates.argsort(dim=1, descending=True)[:, :2]
    taken, kept = [0] * layer.num_experts, torch.zeros(len(x), 2, dtype=torch.bool)
    for choice in (0, 1):
        for row, expert in enumerate(best[:, choice].tolist()):
            kept[row, choice] = taken[expert] < capacity
            taken[expert] += 1
    y = torch.zeros_like(x)
    for row in range(len(x)):
        total = sum(float(gates[row, best[row, n]]) for n in (0, 1) if kept[row, n])
        for n in (0, 1):
            if kept[row, n]:
                e = int(best[row, n])
                out = quick_gelu(given[row] @ layer.fc1[e] + layer.fc1_bias[e]) @ layer.fc2[e] + layer.fc2_bias[e]
                y[row] += float(gates[row, e]) / total * out
    return y


@pytest.mark.parametrize("factor", [None, 1.0, 0.5])
def test_outputs_are_those_of_a_loop_over_tokens(factor: float | None) -> None:
    layer, (x, modality) = moe(eval_capacity_factor=factor).eval(), tokens()
    capacity = math.inf if factor is None else max(4, math.ceil(2 * factor * len(x) / 4))
    y, _ = layer(x, modality)
    torch.testing.assert_close(y, in_a_loop(layer, x, modality, capacity), atol=1e-5, rtol=1e-5)
    assert (y.abs().sum(1) == 0).any() == (factor == 0.5)  # both choices are dropped, and the residual passes


def test_both_ways_of_running_the_experts_have_the_same_gradients() -> None:
    found = []
    for factor in (None, 100.0):
        layer, (x, modality) = moe(eval_capacity_factor=factor).eval(), tokens()
        y, balance = layer(x.requires_grad_(), modality)
        (y.square().sum() + balance).backward()
        found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_outputs_losses_and_gradients_are_those_of_the_released_code() -> None:
    """tests/golden/eve.txt: joint, image and text modes, with and without the modality embedding; capacity factor 1."""
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    names = ("fc1", "fc1_bias", "fc2", "fc2_bias")
    for case in ("joint", "image", "text", "plain"):
        layer = Top2MoE(8, 16, 4, 0 if case == "plain" else 2)
        layer.train()
        layer.router.weight.data = golden["moe/router"]
        for name in names:
            getattr(layer, name).data = golden[f"moe/{name}"]
        if layer.modality_embedding is not None:
            layer.modality_embedding.data = golden["moe/modality_embedding"]
        layer.eval_capacity_factor = 1.0
        layer.eval()  # the noise of the second choice was 0
        x = golden[f"moe/{case}/x"].requires_grad_()
        y, balance = layer(x, golden[f"moe/{case}/modality"])
        torch.testing.assert_close(y, golden[f"moe/{case}/y"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(balance, golden[f"moe/{case}/balance"], atol=1e-5, rtol=1e-5)
        ((y * golden[f"moe/{case}/grad_weight"]).sum() + balance).backward()
        torch.testing.assert_close(x.grad, golden[f"moe/{case}/grad_x"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.router.weight.grad, golden[f"moe/{case}/grad_router"], atol=1e-5, rtol=1e-5)


def test_weights_and_balance_loss() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    kept = top2_routing(logits)
    torch.testing.assert_close(kept.weight.sum(0), torch.ones(40))
    limited = top2_routing(logits, capacity=6)
    inside = (limited.position < 6).any(0)
    torch.testing.assert_close(limited.weight.sum(0), inside.float())
    assert not inside.all()
    assert float(top2_routing(torch.zeros(40, 5)).balance_loss) == pytest.approx(1.0)
    balanced = 50 * torch.eye(5).repeat(8, 1)
    assert float(top2_routing(balanced).balance_loss) == pytest.approx(1.0, abs=1e-4)
    assert float(top2_routing(50 * torch.eye(5)[:1].repeat(40, 1)).balance_loss) == pytest.approx(5.0, abs=1e-3)


def test_one_expert_is_an_mlp_and_evaluation_has_no_noise() -> None:
    layer, (x, modality) = moe(num_experts=1).train(), tokens()
    given = x + layer.modality_embedding[modality]
    expected = quick_gelu(given @ layer.fc1[0] + layer.fc1_bias[0]) @ layer.fc2[0] + layer.fc2_bias[0]
    torch.testing.assert_close(layer(x, modality)[0], expected, atol=1e-5, rtol=1e-5)
    layer = moe(8)
    assert not torch.equal(layer(x, modality)[0], layer(x, modality)[0])
    layer.eval()
    whole = layer(x, modality)[0]
    assert torch.equal(whole, layer(x, modality)[0])
    # Nothing is dropped, so that a token's output depends on no other token.
    torch.testing.assert_close(whole[3:5], layer(x[3:5], modality[3:5])[0], atol=1e-5, rtol=1e-5)


def test_the_router_reads_the_modality() -> None:
    layer, (x, modality) = moe().eval(), tokens()
    layer.modality_embedding.data *= 20
    experts = layer.route(x, modality)[1].expert[0]
    others = layer.route(x, 1 - modality)[1].expert[0]
    assert (experts != others).float().mean() > 0.5
    assert layer(x[:0], modality[:0])[0].shape == (0, 8)


def test_the_second_expert_is_sampled_by_its_gate_in_training() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0]]).repeat(20_000, 1)
    torch.manual_seed(0)
    second = top2_routing(logits, noise=True).expert[1]
    fraction = float((second == 1).float().mean())
    assert fraction == pytest.approx(math.e / (math.e + 1), abs=0.02)
