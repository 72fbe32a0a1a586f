"""Experts by modality, and experts that choose, against one MLP of as many operations a token.

8,192 tokens of width 512, a quarter to three quarters of them of images, scattered in stretches of 64. Experts by
modality are the layer of Mono-InternVL (`layers.decoder.ModalityExperts`); beside it stands what the released code
does: both MLPs for all tokens, then a mask. Experts that choose are that of MoMa: four of each modality, each of
which takes a quarter of its modality's tokens (`layers.expert_choice.ExpertChoice`, one matrix product); beside it
stands the same, expert after expert. Forward and backward, in turn, in one process; results are compared first.

Top-2 experts are the layer of EVE (`layers.top2_moe.Top2MoE`), eight with an embedding of the modality in their router;
beside it stands an MLP twice as wide as an expert. `--top2` times these two alone.

    python benchmarks/moe.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from in_turn import median_ratio, seconds_in_turn
from polymodal.layers.decoder import ModalityExperts, SwiGLU
from polymodal.layers.expert_choice import ExpertChoice
from polymodal.layers.top2_moe import Top2MoE, quick_gelu

TOKENS, WIDTH, HIDDEN, STRETCH, ROUNDS, EXPERTS = 8192, 512, 1408, 64, 7, 4
TOP2_EXPERTS = 8


def top2() -> None:
    """Two of eight experts a token against one MLP of as many operations; the router is random."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(WIDTH, 2 * HIDDEN), torch.nn.Linear(2 * HIDDEN, WIDTH)
    experts, x = Top2MoE(WIDTH, HIDDEN, TOP2_EXPERTS, num_modalities=2), torch.randn(TOKENS, WIDTH, requires_grad=True)
    modality = torch.arange(TOKENS) % 2

    def one_mlp() -> Tensor:
        return second(quick_gelu(first(x)))

    def two_experts() -> Tensor:
        y, balance = experts(x, modality)
        return y + balance

    ways: dict[str, Callable[[], Tensor]] = {"one MLP": one_mlp, "top 2": two_experts}
    steps = {label: lambda way=way: way().square().mean().backward() for label, way in ways.items()}
    times = seconds_in_turn(steps, ROUNDS)
    print(f"top 2 of {TOP2_EXPERTS} experts: {median_ratio(times['top 2'], times['one MLP']):.2f} x of one MLP")


def main() -> None:
    torch.manual_seed(0)
    text, image = SwiGLU(WIDTH, HIDDEN), SwiGLU(WIDTH, HIDDEN)
    choosing_text, choosing_image = (ExpertChoice(WIDTH, HIDDEN, EXPERTS) for _ in range(2))
    for choosing in (choosing_text, choosing_image):
        choosing.auxiliary.requires_grad_(False)
    experts, dense = ModalityExperts({"text": text, "image": image}), SwiGLU(WIDTH, HIDDEN)
    that_choose = ModalityExperts({"text": choosing_text, "image": choosing_image})
    for share in (0.25, 0.5, 0.75):
        x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
        imaged = (torch.rand(TOKENS // STRETCH) < share).repeat_interleave(STRETCH)
        routes = [(~imaged).nonzero().squeeze(1), imaged.nonzero().squeeze(1)]
        mask = imaged[None, :, None].float()

        def both_and_a_mask(x: Tensor = x, mask: Tensor = mask) -> Tensor:
            return (1 - mask) * text(x) + mask * image(x)

        def by_modality(x: Tensor = x, routes: list[Tensor] = routes) -> Tensor:
            return experts(x, routes)

        def choosing_together(x: Tensor = x, routes: list[Tensor] = routes) -> Tensor:
            return that_choose(x, routes)

        def choosing_one_by_one(x: Tensor = x, routes: list[Tensor] = routes) -> Tensor:
            whole = torch.zeros_like(x[0])
            for one, tokens in zip((choosing_text, choosing_image), routes, strict=True):
                whole = whole.index_copy(0, tokens, one_by_one(one, x[0, tokens]))
            return whole[None]

        def one_for_all(x: Tensor = x) -> Tensor:
            return dense(x)

        ways: dict[str, Callable[[], Tensor]] = {
            "one MLP": one_for_all,
            "experts by modality": by_modality,
            "both and a mask": both_and_a_mask,
            f"{EXPERTS} + {EXPERTS} experts that choose": choosing_together,
            "one after the other": choosing_one_by_one,
        }
        differences = (by_modality() - both_and_a_mask(), choosing_together() - choosing_one_by_one())
        difference = max(float(one.detach().abs().max()) for one in differences)
        steps = {label: lambda way=way: way().square().mean().backward() for label, way in ways.items()}
        times = seconds_in_turn(steps, ROUNDS)
        base = times["one MLP"]
        said = ", ".join(f"{label} {median_ratio(found, base):.2f} x" for label, found in times.items())
        print(f"{share:.0%} of images: {said} (largest difference {difference:.1e})")


def one_by_one(experts: ExpertChoice, x: Tensor) -> Tensor:
    """What experts that choose give, with a product for each of them."""
    best = experts.router(x).sigmoid().topk(-(-len(x) // EXPERTS), dim=0)
    whole = torch.zeros_like(x)
    for number in range(EXPERTS):
        tokens, weight = best.indices[:, number], best.values[:, number, None]
        gate, up = (x[tokens] @ experts.gate_up[number]).chunk(2, dim=1)
        whole = whole.index_add(0, tokens, weight * ((F.silu(gate) * up) @ experts.down[number]))
    return whole


if __name__ == "__main__":
    if "--top2" not in sys.argv:
        main()
    top2()
