"""The claim of `dgvae`, for `polymodal reproduce dgvae`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.recommendation.dgvae import Recipe
from polymodal.types import Budget

_treatment = Recipe()
_macridvae = dataclasses.replace(_treatment, use_item_graph=False, use_text=False)
claim = Claim(
    sentence="With words and a graph of similar items, MacridVAE recommends better, also after short histories.",
    baseline=_macridvae,
    treatment=_treatment,
    further={
        "without graph": dataclasses.replace(_treatment, use_item_graph=False),
        "without words": dataclasses.replace(_treatment, use_text=False),
        "without mutual information": dataclasses.replace(_treatment, mi_weight=0.0),
        "one prototype": dataclasses.replace(_macridvae, num_prototypes=1),  # Multi-VAE with embeddings
    },
    corpus="viewers",
    budget=Budget(steps=150),
    seeds=5,
    metrics=(
        "test/recommendation/Recall@20",
        "test/recommendation_from_5/Recall@20",
        "items/prototypes_and_labels/mutual_information",
        "test/prototype_words/matching_accuracy",
        "test/recommendation/NDCG@20",
        "test/recommendation_from_5/NDCG@20",
        "test/recommendation/normalized_Recall@20",
        "test/recommendation/Recall@10",
        "test/recommendation/Recall@50",
        "test/most_popular/Recall@20",
        "test/most_popular/NDCG@20",
    ),
    deciding=("test/recommendation/Recall@20", "test/recommendation_from_5/Recall@20"),
    tuning={"learning_rate": (5e-4, 1e-3, 3e-3)},
    tuned_like={
        "without graph": "treatment",
        "without words": "treatment",
        "without mutual information": "treatment",
        "one prototype": "baseline",
    },
    paper_results="Recall@20 on Amazon Baby .1009 against .0703 of MacridVAE (items alone) and .0579 of Multi-VAE",
)
