"""DGVAE: a VAE recommender with disentangled user prototypes, learned from the item graph and from item text.

A variational auto-encoder with prototypes (MacridVAE) encodes, for each prototype, the part of a user's interactions
that belongs to it, smoothed over a frozen graph of similar items; a second one encodes the words of the same items. The
two sets of latents attend to each other through gates, and their mutual information is maximized prototype by
prototype. Both sides are decoded from the sum, so that a prototype's words explain its items (section III).

The paper turns images into words by a captioner; here, the second graph is of shared facts, and words are of the text
alone.

Terms: MacridVAE = models.macrid_vae.MacridVAE, prototype assignment = MacridVAE.prototype_assignment, cross attention =
gated_attention, ELBO of interactions = losses.item_nll, ELBO of words = losses.text_nll, mutual information regularizer
= losses.mutual_information, interpretability = DGVAE.explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.history import HistoryColumn
from polymodal.data.processor import Declared, Processor
from polymodal.layers.graph import symmetric_weights
from polymodal.models.macrid_vae import Latents, MacridVAE
from polymodal.objectives.mutual_information import jensen_shannon_loss
from polymodal.objectives.variational import kl_divergence, kl_weight, multinomial_nll
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import ADAM, OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper

paper = Paper(
    slug="dgvae",
    title="Disentangled Graph Variational Auto-Encoder for Multimodal Recommendation with Interpretability",
    year=2024,
    arxiv="2402.16110",
    modalities=("history", "text", "graph"),
    code="enoche/DGVAE@460a3682c7379442cd88285d1e6799a61efe4652",
)


def gated_attention(queries: Latents, values: Latents) -> Latents:
    """Return [tanh(Q Xᵀ) * sigmoid(D - mean of D's row)] X with D the negative L1 distances (section III-D)."""
    distance = -torch.cdist(queries, values, p=1)
    gate = torch.sigmoid(distance - distance.mean(-1, keepdim=True))
    return (torch.tanh(queries @ values.transpose(1, 2)) * gate) @ values


class HistoryBatch(TypedDict):
    """history: 1 for each item that a user interacted with, else 0."""

    history: Float[Tensor, "batch items"]


class DGVAE(nn.Module):
    """MacridVAEs of interactions and of words, with a shared sum of latents."""

    updates: Tensor
    edges: Tensor
    edge_weights: Tensor
    item_words: Tensor

    def __init__(self, recipe: Recipe, history: HistoryColumn):
        super().__init__()
        self.recipe = recipe
        count = len(history.catalogue)
        self.vocabulary, words = history.words() if recipe.use_text else ([], torch.zeros(count, 0))
        self.rating_vae = recipe.macrid_vae(count)
        self.text_vae = recipe.macrid_vae(len(self.vocabulary)) if recipe.use_text else None
        self.register_buffer("item_words", words, persistent=False)
        # A = 0.96 A_text + 0.04 A_facts, each normalized by the numbers of neighbors of both items.
        graphs = history.text_neighbors(recipe.knn_k), history.fact_neighbors(recipe.knn_k)
        shares = recipe.text_graph_weight, 1 - recipe.text_graph_weight
        weights = [share * symmetric_weights(g.flip(0), count) for g, share in zip(graphs, shares, strict=True)]
        self.register_buffer("edges", torch.cat(graphs, dim=1), persistent=False)
        self.register_buffer("edge_weights", torch.cat(weights), persistent=False)
        self.register_buffer("updates", torch.tensor(0))

    def user_words(self, history: Float[Tensor, "batch items"]) -> Float[Tensor, "batch words"]:
        """Return the sum of the TF-IDF vectors of a user's items, of unit length."""
        return F.normalize(history @ self.item_words, dim=1)

    def forward(self, history: Float[Tensor, "batch items"]) -> dict[str, Tensor]:
        """Return `MacridVAE.decode` and log-variances of both sides, the words, and the mutual information; without the
        text side, the items' alone."""
        graph = (self.edges, self.edge_weights) if self.recipe.use_item_graph else None
        item_assignment = self.rating_vae.prototype_assignment()
        z_items, item_log_variance = self.rating_vae.encode(history, item_assignment, graph)
        if self.text_vae is None:
            items = self.rating_vae.decode(z_items, item_assignment)
            return {"items": items, "item_log_variance": item_log_variance}
        text = self.user_words(history)
        word_assignment = self.text_vae.prototype_assignment()
        z_words, word_log_variance = self.text_vae.encode(text, word_assignment)
        items_by_words, words_by_items = gated_attention(z_words, z_items), gated_attention(z_items, z_words)
        z = items_by_words + words_by_items
        return {
            "items": self.rating_vae.decode(z, item_assignment),
            "words": self.text_vae.decode(z, word_assignment),
            "text": text,
            "item_log_variance": item_log_variance,
            "word_log_variance": word_log_variance,
            "mutual_information": jensen_shannon_loss(items_by_words, words_by_items),
        }

    def after_step(self, fraction: float) -> None:
        """Count an update, for KL annealing."""
        self.updates += 1

    def losses(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """Return item_nll and text_nll (negative ELBOs) and mutual_information, each with its weight."""
        recipe, output = self.recipe, self(batch["history"])
        beta = kl_weight(self.updates, recipe.kl_anneal_steps, recipe.kl_weight)
        item_nll = multinomial_nll(output["items"].logsumexp(1), batch["history"])
        losses = {"item_nll": item_nll + beta * kl_divergence(output["item_log_variance"])}
        if self.text_vae is not None:
            text_nll = multinomial_nll(output["words"].logsumexp(1), output["text"])
            losses["text_nll"] = recipe.text_weight * (text_nll + beta * kl_divergence(output["word_log_variance"]))
            losses["mutual_information"] = recipe.mi_weight * output["mutual_information"]
        return losses

    def recommend(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """Return the logits of all items, including those of the history."""
        return self(batch["history"])["items"].logsumexp(1)

    def item_prototypes(self) -> Float[Tensor, "items prototypes"]:
        """Return the prototype assignment of the items."""
        return self.rating_vae.prototype_assignment()

    @torch.no_grad()
    def explain(self, batch: HistoryBatch, count: int = 5) -> list[list[tuple[list[int], list[str]]]]:
        """Return, for each user and prototype, the top items that are not in the history, and the top words."""
        output = self(batch["history"])
        unseen = output["items"].masked_fill(batch["history"][:, None, :] > 0, -torch.inf)
        items = unseen.argsort(descending=True)[..., :count]
        words = items[..., :0] if self.text_vae is None else output["words"].argsort(descending=True)[..., :count]
        return [
            [(i.tolist(), [self.vocabulary[word] for word in w.tolist()]) for i, w in zip(*user, strict=True)]
            for user in zip(items, words, strict=True)
        ]


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 128
    """Users per step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, betas=(0.9, 0.999))
    embed_dim: PositiveInt = 64
    """Dimensions of embeddings and latents."""
    num_prototypes: PositiveInt = 4
    """Number of prototypes K, the interests of a user (released code)."""
    temperature: PositiveFloat = 0.1
    """Temperature tau of the prototype assignment and of the decoders."""
    prior_std: NonNegativeFloat = 0.075
    """Standard deviation of the prior, with which latents are sampled in training."""
    dropout: DecayRate = 0.5
    """Dropout of the encoder's inputs."""
    use_item_graph: bool = True
    """Whether interactions are smoothed over the graph of similar items."""
    num_gcn_layers: NonNegativeInt = 2
    """Graph convolutions (without parameters)."""
    knn_k: NonNegativeInt = 10
    """Nearest neighbors k of an item in a graph, including itself."""
    text_graph_weight: UnitInterval = 0.96
    """Weight of the graph of similar texts; the rest is of shared facts, in place of the paper's image features."""
    use_text: bool = True
    """Whether there is a text side."""
    text_weight: NonNegativeFloat = 0.2
    """Weight lambda_text of the text side's ELBO."""
    mi_weight: NonNegativeFloat = 0.2
    """Weight lambda_reg of the mutual information between the two sides."""
    kl_weight: NonNegativeFloat = 0.2
    """Weight of both KL divergences after annealing."""
    kl_anneal_steps: NonNegativeInt = 100
    """Updates over which that weight rises linearly."""

    size_fields: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"batch_size": 256},
        "base": {"batch_size": 512},
    }
    """Embeddings of the defaults are those of the paper."""
    tuning_factors: ClassVar[dict[str, tuple[float, ...]]] = {"temperature": (0.5, 2)}

    def columns(self) -> Declared:
        return {"history": HistoryColumn()}

    def macrid_vae(self, entries: int) -> MacridVAE:
        """Return the VAE of one side. entries: number of items or words."""
        return MacridVAE(
            entries,
            self.embed_dim,
            self.num_prototypes,
            self.temperature,
            self.prior_std,
            self.dropout,
            self.num_gcn_layers,
        )

    def build(self, processor: Processor) -> DGVAE:
        return DGVAE(self, processor.history)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> HistoryBatch:
        """Return whole histories, which are input and target."""
        return processor(history=[example["history"] for example in examples])

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(embed_dim=16, num_prototypes=2, num_gcn_layers=1, knn_k=3, kl_anneal_steps=4, batch_size=4)

    @classmethod
    def paper(cls) -> Recipe:
        """Return the Amazon Baby preset (released run-baby.sh and main.py); Adam without schedule or clipping."""
        # min(0.2, updates / 20000) reaches 0.2 after 4000 updates.
        return cls(batch_size=512, optimizer=ADAM, num_prototypes=3, mi_weight=0.4, kl_anneal_steps=4000)
