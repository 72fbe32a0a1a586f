"""The claim of `aloha`, for `polymodal reproduce aloha`.

The baseline is ALOHa with exact word matching: it also finds objects outside a list, so that what decides is matching
by meaning. CHAIR, an arm, sees no object outside its list. What decides is a mix on which every arm has a chance: wrong
captions of all four kinds (an object of the list, one outside of it, one added, a similar one added), of which exact
matching finds nearly all, among right captions, half of them with a synonym or hypernym. Exact matching flags all of
these and CHAIR some, while matching by meaning may take a hallucinated object for a synonym, so that either side can
win. False alarms on synonyms alone do not decide: those of exact matching are 100 % by construction.
"""

from __future__ import annotations

from polymodal.claim import MetricClaim
from polymodal.evaluation.chair import Chair
from polymodal.recipes.metrics.aloha import Recipe
from polymodal.types import Budget

claim = MetricClaim(
    sentence="Among right captions, half of which use another word for an object, matching objects by meaning detects "
    "hallucinated ones of all kinds, in and outside of a fixed list, with a better average precision than matching "
    "them by word.",
    baseline=Recipe(similarity_model="exact"),
    treatment=Recipe(),
    further={
        "CHAIR": Chair(),
        "nearest, not one to one": Recipe(matching="nearest"),
        "mean of objects": Recipe(reduction="mean"),
        "no root nouns": Recipe(add_root_nouns=False),
    },
    corpus="scenes",
    budget=Budget(examples=400),
    seeds=5,
    metrics=(
        "mixed/average_precision",
        "mixed/F1",
        "out_of_list/average_precision_among_synonyms",
        "synonym/false_alarms",
        "in_list/average_precision_among_synonyms",
        "added/average_precision_among_synonyms",
        "similar/average_precision_among_synonyms",
        "out_of_list/average_precision",
        "in_list/average_precision",
        "added/average_precision",
        "similar/average_precision",
        "out_of_list/localisation",
        "in_list/localisation",
        "similar/localisation",
        "doubted/changed_scores",
    ),
    paper_results="13.6 % more hallucinated objects found than by CHAIR on HAT, 30.8 % more on nocaps-FOIL",
)
