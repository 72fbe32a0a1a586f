"""Losses of singular values."""

from __future__ import annotations

import torch

from polymodal.objectives.spectral import effective_rank, singular_value_loss


def test_the_two_signs_of_the_svd_loss_pull_the_rank_apart() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    values = torch.linalg.eigvalsh((a @ b.T) @ (a @ b.T).T).clamp(min=0).sqrt()
    torch.testing.assert_close(singular_value_loss(a, b, "spread"), values.max() / values.sum(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(singular_value_loss(a, b, "align"), 1 - values.max() / (a @ b.T).norm())
    assert torch.autograd.gradcheck(lambda a, b: singular_value_loss(a, b, "align"), (a.requires_grad_(), b))
    ranks = {}
    for kind in ("spread", "align"):
        moved = a.detach().clone().requires_grad_()
        for _ in range(20):
            (gradient,) = torch.autograd.grad(singular_value_loss(moved, b, kind), moved)  # type: ignore[arg-type]
            moved = (moved - 0.5 * gradient).detach().requires_grad_()
        ranks[kind] = float(effective_rank(moved @ b.T).detach())
    assert ranks["align"] < float(effective_rank(a @ b.T).detach()) - 0.1 < ranks["spread"] - 0.2
    torch.testing.assert_close(effective_rank(torch.eye(4)), torch.tensor(4.0))
