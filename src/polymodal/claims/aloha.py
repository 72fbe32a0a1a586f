"""The claim of `aloha`, for `polymodal reproduce aloha`."""

from __future__ import annotations

from polymodal.claim import MetricClaim
from polymodal.recipes.metrics._chair import Chair
from polymodal.recipes.metrics.aloha import Recipe
from polymodal.types import Budget

claim = MetricClaim(
    sentence="Objects matched by meaning show what is made up, also where a fixed list of objects does not reach.",
    baseline=Chair(),
    treatment=Recipe(),
    further={
        "exact words": Recipe(similarity_model="exact"),
        "nearest, not one to one": Recipe(matching="nearest"),
        "mean of objects": Recipe(reduction="mean"),
    },
    corpus="scenes",
    budget=Budget(examples=400),
    seeds=3,
    metrics=(
        "out_of_list/average_precision",
        "in_list/average_precision",
        "added/average_precision",
        "out_of_list/average_precision_among_synonyms",
        "in_list/average_precision_among_synonyms",
        "out_of_list/localisation",
        "in_list/localisation",
        "synonym/false_alarms",
        "doubted/changed_scores",
    ),
    paper_results="13.6 % more hallucinated objects found than by CHAIR on HAT, 30.8 % more on nocaps-FOIL",
)
