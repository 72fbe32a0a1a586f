"""Sparsemax is the projection onto the simplex."""

import numpy as np
import scipy.optimize
import torch

from polymodal.layers.sparsemax import sparsemax


def test_it_is_the_closest_point_of_the_simplex():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()
    for row, weights in zip(logits.numpy(), sparsemax(logits).numpy(), strict=True):
        closest = scipy.optimize.minimize(
            lambda point, row=row: ((point - row) ** 2).sum(),
            np.full(6, 1 / 6),
            jac=lambda point, row=row: 2 * (point - row),
            bounds=[(0, None)] * 6,
            constraints={"type": "eq", "fun": lambda point: point.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        np.testing.assert_allclose(weights, closest, atol=1e-6)


def test_invariants_and_limits():
    logits = torch.tensor([[0.1, 1.1, 0.2, float("-inf")], [5.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    weights = sparsemax(logits)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    torch.testing.assert_close(weights, sparsemax(logits + 7))
    assert weights[0].tolist()[3] == 0.0
    torch.testing.assert_close(weights[1], torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(weights[2], torch.full((4,), 0.25))
    assert sparsemax(logits[:1].bfloat16()).dtype == torch.float32


def test_gradients():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    assert torch.autograd.gradcheck(sparsemax, (logits,))
