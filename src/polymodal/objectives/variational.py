"""Losses and schedules of variational auto-encoders (VAE, Kingma & Welling 2014): likelihood, KL term and annealing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl_divergence(
    log_variance: Float[Tensor, "batch *latents dim"], mean: Float[Tensor, "batch *latents dim"] | None = None
) -> Float[Tensor, ""]:
    """Return the KL divergence to the standard normal prior, summed over latents and dimensions, averaged over examples
    (appendix B).

    mean: None leaves its term out, which is constant for means of unit length (MacridVAE, Ma et al. 2019).
    """
    terms = 1 + log_variance - log_variance.exp()
    if mean is not None:
        terms = terms - mean.square()
    return -0.5 * terms.flatten(1).sum(1).mean()


def multinomial_nll(
    logits: Float[Tensor, "batch entries"], counts: Float[Tensor, "batch entries"]
) -> Float[Tensor, ""]:
    """Return the negative multinomial log-likelihood of counts, such as a user's interactions, averaged over examples
    (Mult-VAE, Liang et al. 2018, equation 2)."""
    return -(counts * logits.log_softmax(-1)).sum(-1).mean()


def reparameterize(
    mean: Float[Tensor, "*batch dim"], log_variance: Float[Tensor, "*batch dim"], std: float = 1.0
) -> Float[Tensor, "*batch dim"]:
    """Sample latents with gradients to mean and variance. std: of the noise, 1 in the paper."""
    return mean + std * torch.randn_like(mean) * (log_variance / 2).exp()


def kl_weight(updates: Int[Tensor, ""], anneal_steps: int, maximum: float) -> Float[Tensor, ""]:
    """Return the weight of the KL divergence, which rises linearly over the first `anneal_steps` updates (KL annealing,
    Bowman et al. 2016).

    updates: finished updates, so that the first has a weight of maximum / anneal_steps.
    """
    return (updates + 1).clamp(max=max(anneal_steps, 1)) / max(anneal_steps, 1) * maximum
