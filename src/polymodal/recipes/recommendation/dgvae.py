"""DGVAE: a VAE recommender with disentangled user prototypes, learned from the item graph and from item text.

A variational auto-encoder reads, for each prototype, the part of a history that belongs to it, smoothed over a frozen
graph of similar items; a second one reads the words of the same items. The two sets of latents attend to each other
through gates, and are tied prototype by prototype; both sides are decoded from their sum, so that the words of a
prototype explain its items (section III of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval
from polymodal.data.columns.history import HistoryColumn
from polymodal.data.processor import Declared, Processor
from polymodal.rng import ExampleRNG
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.recipe import TrainingRecipe
from polymodal.types import Example, Paper

paper = Paper(
    slug="dgvae",
    title="Disentangled Graph Variational Auto-Encoder for Multimodal Recommendation with Interpretability",
    year=2024,
    arxiv="2402.16110",
    modalities=("history", "text", "graph"),
)

Latents = Float[Tensor, "batch prototypes dim"]


def gated_attention(queries: Latents, values: Latents) -> Latents:
    """[tanh(Q Xᵀ) * sigmoid(D - mean of D's row)] X with D the negative L1 distances (section III-D)."""
    distance = -torch.cdist(queries, values, p=1)
    gate = torch.sigmoid(distance - distance.mean(-1, keepdim=True))
    return (torch.tanh(queries @ values.transpose(1, 2)) * gate) @ values


def prototype_mutual_information(a: Latents, b: Latents) -> Float[Tensor, ""]:
    """Jensen-Shannon bound of mutual information, negated: alike at the same prototype, unlike at others (eq. 21)."""
    similarity = a @ b.transpose(1, 2)
    own = similarity.diagonal(dim1=1, dim2=2)
    positive, count = F.softplus(-own), similarity.shape[1]
    if count == 1:
        return positive.mean()
    negative = (F.softplus(similarity).sum(-1) - F.softplus(own)) / (count - 1)
    return (negative + positive).mean()


def kl_divergence(log_variance: Latents) -> Float[Tensor, ""]:
    """KL to the prior, summed over prototypes and dimensions; means have unit length, so only variances count."""
    return -0.5 * (1 + log_variance - log_variance.exp()).sum((1, 2)).mean()


class Side(nn.Module):
    """The auto-encoder of items, or that of words: embeddings, prototypes and one linear encoder for all of these."""

    def __init__(self, recipe: Recipe, count: int):
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Parameter(torch.empty(count, recipe.embed_dim))
        self.prototypes = nn.Parameter(torch.empty(recipe.num_prototypes, recipe.embed_dim))
        self.encoder = nn.Linear(count, 2 * recipe.embed_dim)
        for weight in (self.embedding, self.prototypes, self.encoder.weight):
            nn.init.xavier_normal_(weight)
        nn.init.normal_(self.encoder.bias, std=0.01)

    def assignment(self) -> Float[Tensor, "count prototypes"]:
        """How much each item or word belongs to each prototype; drawn by Gumbel softmax in training. Rows sum to 1."""
        logits = F.normalize(self.embedding, dim=1) @ F.normalize(self.prototypes, dim=1).T / self.recipe.temperature
        return F.gumbel_softmax(logits, dim=1) if self.training else logits.softmax(1)

    def encode(
        self, chosen: Float[Tensor, "batch count"], assignment: Float[Tensor, "count prototypes"], graph: Tensor | None
    ) -> tuple[Latents, Latents]:
        """A latent of unit length for each prototype, and the logarithm of its variance relative to the prior's."""
        parts = F.normalize(chosen[:, None, :] * assignment.T, dim=-1)
        smooth = parts.flatten(0, 1).T
        for _ in range(self.recipe.num_gcn_layers if graph is not None else 0):
            smooth = torch.sparse.mm(graph, smooth)
        parts = F.dropout((smooth.T.view_as(parts) + parts) / 2, self.recipe.dropout, self.training)
        mean, negated = self.encoder(parts).chunk(2, dim=-1)
        mean, log_variance = F.normalize(mean, dim=-1), -negated
        if self.training:
            spread = self.recipe.prior_std * (log_variance / 2).exp()
            mean = F.normalize(mean + torch.randn_like(mean) * spread, dim=-1)
        return mean, log_variance

    def by_prototype(
        self, latents: Latents, assignment: Float[Tensor, "count prototypes"]
    ) -> Float[Tensor, "batch prototypes count"]:
        """Logarithm of what each prototype gives to each item or word; summed over prototypes it is the score."""
        similarity = latents @ F.normalize(self.embedding, dim=1).T / self.recipe.temperature
        return assignment.clamp(min=1e-20).log().T + similarity.float()


class HistoryBatch(TypedDict):
    """history: 1 for each item that a user interacted with, else 0."""

    history: Float[Tensor, "batch items"]


class DGVAE(nn.Module):
    """The two sides, what ties them, and the recommendation that both give."""

    updates: Tensor
    edges: Tensor
    edge_weights: Tensor
    item_words: Tensor

    def __init__(self, recipe: Recipe, history: HistoryColumn):
        super().__init__()
        self.recipe = recipe
        self.vocabulary, words = history.words()
        self.items = Side(recipe, len(history.catalogue))
        self.words = Side(recipe, len(self.vocabulary)) if recipe.use_text else None
        self.register_buffer("item_words", words, persistent=False)
        text, facts = history.text_neighbors(recipe.knn_k), history.fact_neighbors(recipe.knn_k)
        weights = [
            torch.full((edges.shape[1],), share / recipe.knn_k)
            for edges, share in ((text, recipe.text_graph_weight), (facts, 1 - recipe.text_graph_weight))
        ]
        self.register_buffer("edges", torch.cat([text, facts], dim=1), persistent=False)
        self.register_buffer("edge_weights", torch.cat(weights), persistent=False)
        self.register_buffer("updates", torch.tensor(0))

    @property
    def graph(self) -> Tensor | None:
        """Target x source, sparse: what an item takes of those that have it among their neighbours."""
        if not self.recipe.use_item_graph:
            return None
        count = len(self.items.embedding)
        return torch.sparse_coo_tensor(self.edges.flip(0), self.edge_weights, (count, count), check_invariants=False)

    def read_words(self, chosen: Float[Tensor, "batch items"]) -> Float[Tensor, "batch words"]:
        """TF-IDF of the words of all chosen items together, of unit length."""
        return F.normalize(chosen @ self.item_words, dim=1)

    def forward(self, chosen: Float[Tensor, "batch items"]) -> dict[str, Tensor]:
        """All that losses, recommendation and explanation are made of.

        items, words: by_prototype of either side; read: the words of what was chosen. Without the second side, only
        those of the items are there.
        """
        item_assignment = self.items.assignment()
        latents, variance = self.items.encode(chosen, item_assignment, self.graph)
        if self.words is None:
            return {"items": self.items.by_prototype(latents, item_assignment), "item_variance": variance}
        read = self.read_words(chosen)
        word_assignment = self.words.assignment()
        of_words, word_variance = self.words.encode(read, word_assignment, None)
        items_by_words, words_by_items = gated_attention(of_words, latents), gated_attention(latents, of_words)
        both = items_by_words + words_by_items
        return {
            "items": self.items.by_prototype(both, item_assignment),
            "words": self.words.by_prototype(both, word_assignment),
            "read": read,
            "item_variance": variance,
            "word_variance": word_variance,
            "agreement": prototype_mutual_information(items_by_words, words_by_items),
        }

    def after_step(self, fraction: float) -> None:
        """Count an update, with which the weight of the divergence rises."""
        self.updates += 1

    def losses(self, batch: HistoryBatch) -> dict[str, Tensor]:
        """item_nll, text_nll: negative log-likelihood and KL divergence; mutual_information; each with its weight."""
        recipe, chosen = self.recipe, batch["history"]
        annealed = self.updates.clamp(max=recipe.kl_anneal_steps) / max(recipe.kl_anneal_steps, 1) * recipe.kl_weight
        seen = self(chosen)
        losses = {"item_nll": self._likelihood(seen["items"], chosen) + annealed * kl_divergence(seen["item_variance"])}
        if self.words is not None:
            words = self._likelihood(seen["words"], seen["read"])
            losses["text_nll"] = recipe.text_weight * (words + annealed * kl_divergence(seen["word_variance"]))
            losses["mutual_information"] = recipe.mi_weight * seen["agreement"]
        return losses

    @staticmethod
    def _likelihood(by_prototype: Tensor, target: Float[Tensor, "batch count"]) -> Float[Tensor, ""]:
        return -(target * by_prototype.logsumexp(1).log_softmax(-1)).sum(-1).mean()

    def recommend(self, batch: HistoryBatch) -> Float[Tensor, "batch items"]:
        """A score for every item, also for those that were chosen already."""
        return self(batch["history"])["items"].logsumexp(1)

    def item_prototypes(self) -> Float[Tensor, "items prototypes"]:
        return self.items.assignment()

    @torch.no_grad()
    def explain(self, batch: HistoryBatch, count: int = 5) -> list[list[tuple[list[int], list[str]]]]:
        """For each person and prototype, the numbers of the strongest items not yet chosen, and the strongest words."""
        seen = self(batch["history"])
        items = seen["items"].masked_fill(batch["history"][:, None, :] > 0, -torch.inf).topk(count).indices
        words = seen["words"].topk(count).indices if self.words is not None else items[..., :0]
        return [
            [(i.tolist(), [self.vocabulary[word] for word in w.tolist()]) for i, w in zip(*person, strict=True)]
            for person in zip(items, words, strict=True)
        ]


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    batch_size: PositiveInt = 128
    """Histories in a step."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, betas=(0.9, 0.999))
    embed_dim: PositiveInt = 64
    """Dimensions of embeddings and latents."""
    num_prototypes: PositiveInt = 4
    """Interests that a person is divided into (released code)."""
    temperature: PositiveFloat = 0.1
    """Of assignments and of the decoders."""
    prior_std: NonNegativeFloat = 0.075
    """Standard deviation of the prior, which the latents are drawn with in training."""
    dropout: DecayRate = 0.5
    """Share of the encoder's inputs that are dropped."""
    use_item_graph: bool = True
    """Whether histories are smoothed over the graph of similar items."""
    num_gcn_layers: NonNegativeInt = 2
    """Steps of smoothing."""
    knn_k: NonNegativeInt = 10
    """Of an item in the graph, itself among them."""
    text_graph_weight: UnitInterval = 0.96
    """Weight of the graph by words; the rest is that by facts, which stands where the paper has images."""
    use_text: bool = True
    """Whether there is a second side of words."""
    text_weight: NonNegativeFloat = 0.2
    """Weight of that side's likelihood and divergence."""
    mi_weight: NonNegativeFloat = 0.2
    """Weight of the mutual information between the two sides."""
    kl_weight: NonNegativeFloat = 0.2
    """Weight of the divergence in the end (both sides)."""
    kl_anneal_steps: NonNegativeInt = 100
    """Updates over which that weight rises from 0."""

    def columns(self) -> Declared:
        return {"history": HistoryColumn()}

    def build(self, processor: Processor) -> DGVAE:
        return DGVAE(self, processor.history)

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> HistoryBatch:
        """Whole histories, which are input and target."""
        return processor(history=[example["history"] for example in examples])

    @classmethod
    def tiny(cls) -> Recipe:
        """Return the smallest preset, for tests."""
        return cls(embed_dim=16, num_prototypes=2, num_gcn_layers=1, knn_k=3, kl_anneal_steps=4, batch_size=4)

    @classmethod
    def paper(cls) -> Recipe:
        """Amazon Baby (released run-baby.sh)."""
        return cls(
            batch_size=512,
            optimizer=OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.999), learning_rate=1e-3),
            num_prototypes=3,
            mi_weight=0.4,
            kl_anneal_steps=4000,
        )
