"""Experts by modality against one perceptron of the same size, which is as many operations a token.

The layer is that of Mono-InternVL (`layers.decoder.ModalityExperts`): 8,192 tokens of width 512, a quarter to three
quarters of them of pictures, scattered in stretches of 64. Beside it stands what the released code does: both
perceptrons for all tokens, then a mask. Forward and backward, in turn, in one process; results are compared first.

    python benchmarks/moe.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from in_turn import median_ratio, seconds_in_turn
from polymodal.layers.decoder import ModalityExperts, SwiGLU

TOKENS, WIDTH, HIDDEN, STRETCH, ROUNDS = 8192, 512, 1408, 64, 7


def main() -> None:
    torch.manual_seed(0)
    text, image = SwiGLU(WIDTH, HIDDEN), SwiGLU(WIDTH, HIDDEN)
    experts, dense = ModalityExperts({"text": text, "image": image}), SwiGLU(WIDTH, HIDDEN)
    for share in (0.25, 0.5, 0.75):
        x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
        pictured = (torch.rand(TOKENS // STRETCH) < share).repeat_interleave(STRETCH)
        routes = [(~pictured).nonzero().squeeze(1), pictured.nonzero().squeeze(1)]
        mask = pictured[None, :, None].float()

        def both_and_a_mask(x: Tensor = x, mask: Tensor = mask) -> Tensor:
            return (1 - mask) * text(x) + mask * image(x)

        def by_modality(x: Tensor = x, routes: list[Tensor] = routes) -> Tensor:
            return experts(x, routes)

        def one_for_all(x: Tensor = x) -> Tensor:
            return dense(x)

        ways: dict[str, Callable[[], Tensor]] = {
            "one perceptron": one_for_all,
            "experts": by_modality,
            "both and a mask": both_and_a_mask,
        }
        difference = (by_modality() - both_and_a_mask()).abs().max()
        steps = {label: lambda way=way: way().square().mean().backward() for label, way in ways.items()}
        times = seconds_in_turn(steps, ROUNDS)
        base = times["one perceptron"]
        said = ", ".join(f"{label} {median_ratio(found, base):.2f} x" for label, found in times.items())
        print(f"{share:.0%} of pictures: {said} (largest difference {difference:.1e})")


if __name__ == "__main__":
    main()
