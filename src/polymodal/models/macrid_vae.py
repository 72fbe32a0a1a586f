"""MacridVAE (Ma et al. 2019): a variational auto-encoder of interactions, with a latent for each of a few prototypes.

A prototype is an interest, to which each item belongs with a probability. Where a graph of similar items is given,
interactions are smoothed over it first (DGVAE, section III).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.layers.graph import propagate
from polymodal.objectives.variational import reparameterize

Latents = Float[Tensor, "batch prototypes dim"]
LogProbs = Float[Tensor, "batch prototypes entries"]  # of each prototype, not normalized
Assignment = Float[Tensor, "entries prototypes"]


class MacridVAE(nn.Module):
    """VAE of interactions with prototypes (Ma et al. 2019), whose inputs are smoothed over a graph.

    One linear layer encodes all prototypes.
    """

    def __init__(
        self,
        entries: int,
        embed_dim: int,
        num_prototypes: int,
        temperature: float,
        prior_std: float,
        dropout: float = 0.0,
        num_gcn_layers: int = 1,
    ):
        """entries: number of items, or of the words of a text. temperature: of assignment and decoder. prior_std:
        standard deviation with which latents are sampled in training. dropout: of the encoder's inputs. num_gcn_layers:
        graph convolutions, where a graph is given."""
        super().__init__()
        self.temperature, self.prior_std = temperature, prior_std
        self.dropout, self.num_gcn_layers = dropout, num_gcn_layers
        self.item_embeddings = nn.Parameter(torch.empty(entries, embed_dim))
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, embed_dim))
        self.encoder = nn.Linear(entries, 2 * embed_dim)
        for weight in (self.item_embeddings, self.prototypes, self.encoder.weight):
            nn.init.xavier_normal_(weight)
        nn.init.normal_(self.encoder.bias, std=0.01)

    def prototype_assignment(self) -> Assignment:
        """Return the probability of each prototype for each entry; sampled by Gumbel softmax in training."""
        items, prototypes = F.normalize(self.item_embeddings, dim=1), F.normalize(self.prototypes, dim=1)
        logits = items @ prototypes.T / self.temperature
        return F.gumbel_softmax(logits, dim=1) if self.training else logits.softmax(1)

    def encode(
        self,
        interactions: Float[Tensor, "batch entries"],
        assignment: Assignment,
        graph: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Latents, Latents]:
        """Return a latent of unit length for each prototype, and its log-variance relative to the prior's.

        graph: edges and their weights; None is the graph of self-loops.
        """
        x = F.normalize(interactions[:, None, :] * assignment.T, dim=-1)
        smoothed = x if graph is None else propagate(x, *graph, self.num_gcn_layers)
        x = F.dropout((smoothed + x) / 2, self.dropout, self.training)
        mean, negative_log_variance = self.encoder(x).chunk(2, dim=-1)
        mean, log_variance = F.normalize(mean, dim=-1), -negative_log_variance
        if self.training:
            mean = F.normalize(reparameterize(mean, log_variance, self.prior_std), dim=-1)
        return mean, log_variance

    def decode(self, latents: Latents, assignment: Assignment) -> LogProbs:
        """Return log(c_ik exp(z_k e_i / tau)); its logsumexp over prototypes is an entry's logit."""
        similarity = latents @ F.normalize(self.item_embeddings, dim=1).T / self.temperature
        return assignment.clamp(min=1e-20).log().T + similarity.float()
