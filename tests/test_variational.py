"""Losses of variational auto-encoders and bounds of mutual information, against torch.distributions and plain loops."""

from __future__ import annotations

import torch
from torch.distributions import Multinomial, Normal
from torch.distributions import kl_divergence as reference
from torch.nn import functional as F

from polymodal.objectives.mutual_information import jensen_shannon_loss
from polymodal.objectives.variational import kl_divergence, kl_weight, multinomial_nll, reparameterize


def test_the_kl_divergence_is_that_of_torch_and_leaves_out_constant_means() -> None:
    mean, log_variance = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    normal = Normal(mean, (log_variance / 2).exp())
    expected = reference(normal, Normal(0.0, 1.0)).sum((1, 2)).mean()
    torch.testing.assert_close(kl_divergence(log_variance, mean), expected)
    constant = mean.square().sum((1, 2)).mean() / 2
    torch.testing.assert_close(kl_divergence(log_variance), expected - constant)


def test_the_likelihood_of_counts_is_that_of_torch_without_the_number_of_their_orders() -> None:
    logits, counts = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 0.0, 2.0, 1.0])
    orders = torch.tensor(12.0).log()  # 4! / 2!
    expected = -(Multinomial(4, logits=logits).log_prob(counts) - orders).mean()
    torch.testing.assert_close(multinomial_nll(logits, counts.expand(3, 4)), expected)


def test_samples_have_the_mean_and_the_deviation_of_the_posterior() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    samples = reparameterize(mean.expand(20_000, 2), log_variance.expand(20_000, 2), std=0.5)
    torch.testing.assert_close(samples.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), 0.5 * (log_variance[0] / 2).exp(), atol=0.05, rtol=0)


def test_the_weight_rises_linearly_from_the_first_update() -> None:
    weights = [float(kl_weight(torch.tensor(updates), 4, 0.2)) for updates in range(6)]
    torch.testing.assert_close(torch.tensor(weights), torch.tensor([0.05, 0.1, 0.15, 0.2, 0.2, 0.2]))
    assert float(kl_weight(torch.tensor(0), 0, 0.2)) == torch.tensor(0.2)


def test_the_jensen_shannon_loss_follows_its_formula() -> None:
    a, b = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(())
    for n in range(2):
        for i in range(3):
            negatives = torch.stack([F.softplus(a[n, i] @ b[n, j]) for j in range(3) if j != i]).mean()
            expected += (negatives + F.softplus(-a[n, i] @ b[n, i])) / 6
    torch.testing.assert_close(jensen_shannon_loss(a, b), expected)
    assert jensen_shannon_loss(a[:, :1], b[:, :1]).isfinite()
