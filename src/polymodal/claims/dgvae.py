"""The claim of `dgvae`, for `polymodal reproduce dgvae`."""

from __future__ import annotations

from polymodal.claim import Claim
from polymodal.recipes.recommendation.dgvae import Recipe
from polymodal.types import Budget

claim = Claim(
    sentence="Words and a graph of similar items make better recommendations than what was chosen alone.",
    baseline=Recipe(use_item_graph=False, use_text=False),
    treatment=Recipe(),
    further={
        "without the graph": Recipe(use_item_graph=False),
        "without words": Recipe(use_text=False),
        "without agreement": Recipe(mi_weight=0.0),
        "one prototype": Recipe(num_prototypes=1, use_item_graph=False, use_text=False),
    },
    corpus="viewers",
    budget=Budget(steps=200),
    seeds=5,
    metrics=(
        "test/recommendation/Recall@20",
        "test/recommendation/NDCG@20",
        "test/recommendation/Recall@10",
        "test/recommendation/Recall@50",
        "test/most_popular/Recall@20",
        "test/most_popular/NDCG@20",
        "items/prototypes_and_labels/mutual_information",
    ),
    paper_results="Recall@20 on Amazon Baby .1009 against .0703 of MacridVAE (items alone) and .0579 of Multi-VAE",
)
