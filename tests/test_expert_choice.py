"""Expert-choice routing and mixture of depths: loops, limiting cases, causality, and figures from public code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.data.sequence import TEXT
from polymodal.layers.decoder import Decoder, ModalityExperts, PostSubLayerNormBlock, SwiGLU
from polymodal.layers.expert_choice import AuxiliaryRouter, ExpertChoice, gumbel_sigmoid
from polymodal.layers.mixture_of_depths import MixtureOfDepths

GOLDEN = Path(__file__).parent / "golden" / "moma.npz"


def test_experts_of_each_modality_give_the_figures_of_public_code() -> None:
    """tests/golden/moma.txt: outputs and gradients of two groups of experts, with padding that nobody takes."""
    given = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    groups = ModalityExperts({TEXT: ExpertChoice(16, 32, 4), "image": ExpertChoice(16, 32, 3)}).eval()
    for name in groups.modalities:
        own = groups.get_submodule(name)
        gate_up = torch.cat([given[f"{name}.gate_proj"], given[f"{name}.up_proj"]], dim=1)
        own.router.weight.data = given[f"{name}.router"]
        own.gate_up.data, own.down.data = gate_up.mT.clone(), given[f"{name}.down_proj"].mT.clone()
    x = given["x"].requires_grad_()
    routes = [((given["modality"] == kind) & given["mask"]).flatten().nonzero().squeeze(1) for kind in (0, 1)]
    y = groups(x, routes)
    (y * given["grad_weight"]).sum().backward()
    torch.testing.assert_close(y, given["y"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, given["grad_x"], atol=1e-5, rtol=1e-5)
    for name in groups.modalities:
        own = groups.get_submodule(name)
        torch.testing.assert_close(own.router.weight.grad, given[f"{name}.router_grad"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own.down.grad.mT, given[f"{name}.down_proj_grad"], atol=1e-5, rtol=1e-5)


def test_the_auxiliary_router_learns_the_choice_of_inference() -> None:
    """Once the router is frozen, the target of the BCE is the top-k of scores without noise: the same in every call."""
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4, noise=True).train(), tokens(64)
    experts(x)
    assert experts.auxiliary_loss is not None
    for name, parameter in experts.named_parameters():
        parameter.requires_grad_(name.startswith("auxiliary."))
    chosen = torch.zeros(64, 4).scatter(0, experts.router(x).topk(16, dim=0).indices, 1.0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(experts.auxiliary(x), chosen)
    for _ in range(3):
        experts(x)
        torch.testing.assert_close(experts.auxiliary_loss, expected)


def tokens(count: int = 20, width: int = 8) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def test_every_expert_takes_its_share_and_each_token_the_sum_of_those_that_took_it() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4).eval(), tokens()
    scores = experts.router(x).sigmoid()
    expected = torch.zeros_like(x)
    for number in range(4):
        for token in scores[:, number].topk(5).indices.tolist():
            gate, up = (x[token] @ experts.gate_up[number]).chunk(2)
            done = (torch.nn.functional.silu(gate) * up) @ experts.down[number]
            expected[token] += scores[token, number] * done
    torch.testing.assert_close(experts(x), expected)
    chosen_by_none = (expected == 0).all(1)
    assert chosen_by_none.any(), "some tokens are left out"
    assert len(experts(tokens(7))) == 7
    assert experts(tokens(0)).shape == (0, 8)


def test_alone_the_first_expert_is_a_plain_mlp_and_upcycled_ones_are_its_copies() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 3).eval(), tokens()
    experts.single_expert.fill_(True)
    plain = SwiGLU(8, 16)
    plain.gate_up.weight.data, plain.down.weight.data = experts.gate_up[0].T.clone(), experts.down[0].T.clone()
    torch.testing.assert_close(experts(x), plain(x))
    experts.upcycle()
    torch.nn.init.zeros_(experts.router.weight)  # every score is a half, and every expert takes the same third
    done = experts(x)
    taken = done.abs().sum(1) > 0
    torch.testing.assert_close(done[taken], 3 * plain(x)[taken])


def test_noise_is_the_difference_of_two_gumbel_samples_and_of_training_alone() -> None:
    torch.manual_seed(0)
    logits = torch.full((40_000,), 0.7)
    noisy = gumbel_sigmoid(logits).logit() - 0.7
    assert noisy.mean().abs() < 0.03
    assert noisy.std().item() == pytest.approx(math.pi / math.sqrt(3), rel=0.03), "logistic"
    experts = ExpertChoice(8, 16, 4, noise=True)
    x = tokens()
    assert not torch.equal(experts(x), experts(x))
    experts.eval()
    assert torch.equal(experts(x), experts(x))


def test_scores_learn_through_what_they_weigh() -> None:
    experts = ExpertChoice(8, 16, 4)
    experts(tokens()).square().sum().backward()
    assert experts.router.weight.grad is not None
    assert experts.router.weight.grad.abs().sum() > 0


def test_an_auxiliary_router_learns_the_choice_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4, noise=True), tokens(256)  # noise is off once the router is frozen
    for name, parameter in experts.named_parameters():
        parameter.requires_grad_(name.startswith("auxiliary."))
    optimizer = torch.optim.AdamW(experts.auxiliary.parameters(), 3e-2)
    losses = []
    for _ in range(150):
        experts(x)
        loss = experts.auxiliary_loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.35
    assert experts.router.weight.grad is None
    experts.use_predictor.fill_(True)
    experts.eval()
    scores = experts.router(x).sigmoid()
    best = scores.topk(64, dim=0).indices
    right = (experts.auxiliary(x) > 0) == torch.zeros(256, 4, dtype=torch.bool).scatter(0, best, True)
    assert right.float().mean() > 0.85
    assert AuxiliaryRouter(8, 4).requires_grad_(False).loss(x, right) is None


def test_a_predicted_choice_depends_on_no_other_token() -> None:
    torch.manual_seed(0)
    experts, x = ExpertChoice(8, 16, 4).eval(), tokens()
    experts.use_predictor.fill_(True)
    with torch.no_grad():
        together = experts(x)
        alone = torch.cat([experts(one[None]) for one in x])
        torch.testing.assert_close(together, alone)
        chosen_among_few = experts(x[:10])
    torch.testing.assert_close(chosen_among_few, together[:10])


def decoder(share: float = 0.5) -> Decoder:
    torch.manual_seed(0)
    stack = Decoder(16, 2, 4, 4, lambda: ModalityExperts({TEXT: SwiGLU(16, 24)}), block=PostSubLayerNormBlock)
    stack.blocks[0] = MixtureOfDepths(stack.blocks[0], 16, share)
    return stack.eval()


def rows(batch: int = 3, length: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(length).expand(batch, -1), torch.ones(batch, length, dtype=torch.long)


def test_where_all_go_in_the_block_is_weighed_by_the_score() -> None:
    stack, (x, position, document) = decoder(share=1.0), rows()
    deep = stack.blocks[0]
    expected = []
    deep.block.register_forward_hook(lambda _, given, found: expected.append((given[0], found)))
    found = {}
    deep.register_forward_hook(lambda _, given, out: found.update(x=given[0], y=out))
    stack(x, position, document)
    given, done = expected[0]
    torch.testing.assert_close(given, x)
    torch.testing.assert_close(found["y"], x + deep.router(x).sigmoid() * (done - x))


def test_those_left_out_stay_as_they_are_and_are_not_computed() -> None:
    stack, (x, position, document) = decoder(share=0.25), rows()
    deep = stack.blocks[0]
    places = []
    deep.block.register_forward_hook(lambda _, given, __: places.append(given[0].shape[1]))
    found = {}
    deep.register_forward_hook(lambda _, given, out: found.update(y=out))
    stack(x, position, document)
    changed = (found["y"] != x).any(2)
    best = deep.router(x).flatten().topk(math.ceil(0.25 * 30)).indices
    assert set(changed.flatten().nonzero().squeeze(1).tolist()) == set(best.tolist())
    assert places == [int(changed.sum(1).max())], "no row is longer than the most that one has"


def test_word_by_word_is_as_at_once_where_the_choice_is_predicted() -> None:
    stack, (x, position, document) = decoder(), rows()
    deep = stack.blocks[0]
    deep.use_predictor.fill_(True)
    with torch.no_grad():
        chosen = deep.auxiliary(x.flatten(0, 1)) > 0
        assert 0 < int(chosen.sum()) < 30
        at_once = stack(x, position, document)
        cache = stack.cache(3, 10)
        first = stack(x[:, :4], position[:, :4], document[:, :4], None, cache)
        rest = [
            stack(x[:, n : n + 1], position[:, n : n + 1], document[:, n : n + 1], None, cache) for n in range(4, 10)
        ]
        torch.testing.assert_close(torch.cat([first, *rest], dim=1), at_once, atol=1e-5, rtol=1e-5)
        later = x.clone()
        later[:, 7:] += 1
        torch.testing.assert_close(stack(later, position, document)[:, :7], at_once[:, :7], atol=1e-5, rtol=1e-5)


def test_padding_never_goes_in() -> None:
    stack, (x, position, document) = decoder(share=0.5), rows()
    document = document.clone()
    document[:, 6:] = 0
    there = (document > 0).flatten().nonzero().squeeze(1)
    found = {}
    stack.blocks[0].register_forward_hook(lambda _, given, out: found.update(y=out))
    stack(x, position, document, [there])
    assert torch.equal(found["y"][:, 6:], x[:, 6:])
    assert int((found["y"] != x).any(2).sum()) == math.ceil(0.5 * len(there))
