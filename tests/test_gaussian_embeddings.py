"""Diagonal Gaussians: 2-Wasserstein distance and its contrast, entropy margin, noise of examples, and the PDE."""

import math

import pytest
import torch
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.gaussian import DiagonalGaussian, example_noise
from polymodal.layers.probability_distribution_encoder import ProbabilityDistributionEncoder
from polymodal.objectives.wasserstein import (
    entropy_margin_loss,
    sphere_vectors,
    squared_wasserstein2,
    wasserstein_info_nce,
)

SEEDS = torch.tensor([5, 3, 8])


def gaussians(count: int, dim: int = 6, seed: int = 0, scale: float = 0.5) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    mean, log_sigma = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    return DiagonalGaussian(mean, scale * log_sigma)


def test_distance_compares_sigmas_is_symmetric_and_zero_for_equal_parameters_alone() -> None:
    a, b = gaussians(4), gaussians(5, seed=1)
    distances = squared_wasserstein2(a, b)
    for i in range(4):
        for j in range(5):
            means = sum((float(a.mean[i, k]) - float(b.mean[j, k])) ** 2 for k in range(6))
            sigmas = sum((math.exp(a.log_sigma[i, k]) - math.exp(b.log_sigma[j, k])) ** 2 for k in range(6))
            assert float(distances[i, j]) == pytest.approx(means + sigmas)
    torch.testing.assert_close(squared_wasserstein2(b, a), distances.T)
    own = squared_wasserstein2(a, a)
    assert own.diagonal().abs().max() < 1e-12
    assert (own + torch.eye(4) > 0.1).all()
    wider = DiagonalGaussian(a.mean, a.log_sigma + 0.1)
    assert (squared_wasserstein2(a, wider).diagonal() > 0.01).all()
    equal = DiagonalGaussian(b.mean[:4], a.log_sigma[:1].expand(4, -1))
    points = squared_wasserstein2(DiagonalGaussian(a.mean, equal.log_sigma), equal)
    torch.testing.assert_close(points, torch.cdist(a.mean, equal.mean).square())


def test_contrast_is_a_softmax_of_negative_squared_distances_whatever_constant_is_added() -> None:
    a, b = gaussians(4), gaussians(4, seed=1)
    a.mean.requires_grad_(), a.log_sigma.requires_grad_()
    similarity = (-squared_wasserstein2(a, b) / 200 + 4) / 0.07
    labels = torch.arange(4)
    expected = (F.cross_entropy(similarity, labels) + F.cross_entropy(similarity.T, labels)) / 2
    loss = wasserstein_info_nce(a, b, torch.tensor(1 / 200 / 0.07, dtype=torch.float64))
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, a), torch.autograd.grad(expected, a), strict=True):
        torch.testing.assert_close(found, wanted)


def test_vectors_of_an_index_have_unit_length_and_the_order_of_distances() -> None:
    a, b = gaussians(20, 64), gaussians(200, 64, seed=1)
    x, y = sphere_vectors(a), sphere_vectors(b)
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(200))
    torch.testing.assert_close(
        sphere_vectors(DiagonalGaussian(100 * b.mean, b.log_sigma)).norm(dim=-1), torch.ones(200)
    )
    distances = squared_wasserstein2(a, b)
    # What the lift adds to a squared distance is below a hundredth of how far these are apart.
    lifted = (2 - 2 * x @ y.T) * 64 * 2 * 64
    assert (lifted - distances).abs().max() < 0.01 * (distances.max() - distances.min())
    assert (x @ y.T).argmax(1).tolist() == distances.argmin(1).tolist()


def test_margin_has_a_gradient_only_below_it_and_none_from_padding() -> None:
    dim, constant = 6, 3 * (math.log(2 * math.pi) + 1)
    wide, narrow = torch.zeros(2, 3, dim), torch.full((2, 3, dim), -4.0)
    margin = 0.39 * dim
    for log_sigma, expected in ((wide, 0.0), (narrow, margin - (constant - 4 * dim / 2))):
        log_sigma.requires_grad_()
        mask = torch.tensor([[True, True, False], [True, False, False]])
        loss = entropy_margin_loss(DiagonalGaussian(torch.zeros(2, 3, dim), log_sigma), margin, mask)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        gradient = log_sigma.grad
        assert gradient is not None
        assert (gradient[~mask] == 0).all()
        assert bool((gradient[mask] < 0).all()) == (expected > 0)  # descent raises sigma
        assert bool((gradient == 0).all()) == (expected == 0)
    given = gaussians(5)
    whole = torch.distributions.Independent(torch.distributions.Normal(given.mean, given.sigma), 1)
    torch.testing.assert_close(given.entropy(), whole.entropy())


def test_noise_is_of_the_example_and_copies_begin_with_the_mean() -> None:
    counts = torch.tensor([2, 0, 3])
    noise = example_noise(SEEDS, counts, 400, 4)
    assert noise.shape == (400, 5, 4)
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(example_noise(SEEDS[2:], counts[2:], 400, 4), noise[:, 2:])  # whatever is beside it
    assert not torch.equal(example_noise(SEEDS, counts, 400, 4, stream=1), noise)
    assert example_noise(SEEDS, counts, 0, 4).shape == (0, 5, 4)
    given = gaussians(5, 4, scale=0.1)
    copies = given.copies(noise.double())
    assert torch.equal(copies[0], given.mean)
    torch.testing.assert_close(copies[1:].std(0), given.sigma, atol=0.15, rtol=0)


def test_variance_depends_on_the_sequence_unless_each_token_is_encoded_alone() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    other = x.clone()
    other[:, 2] += 1
    for attention in (True, False):
        encoder = ProbabilityDistributionEncoder(8, 2, sequence_attention=attention).eval()
        one, changed = encoder(x, mask), encoder(other, mask)
        assert torch.equal(one.log_sigma[:, 0], changed.log_sigma[:, 0]) != attention
        x_padded = x.clone()
        x_padded[1, 3:] = 9
        torch.testing.assert_close(encoder(x_padded, mask).select(mask), one.select(mask))
        for found, whole in zip(encoder(x, mask, 2), one, strict=True):
            torch.testing.assert_close(found, whole[:, :2])
        torch.testing.assert_close(one.mean, x, atol=0.1, rtol=0)  # residual of the mean alone
        assert one.log_sigma.abs().max() < 0.1
        with torch.no_grad():
            encoder.log_sigma_projection.bias.fill_(200.0)
        assert encoder(x).sigma.isfinite().all()
    with pytest.raises(UserError, match=r"10 does not divide into 3 heads"):
        ProbabilityDistributionEncoder(10, 3)
