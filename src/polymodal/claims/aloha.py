"""The claim of `aloha`, for `polymodal reproduce aloha`.

The baseline is ALOHa with exact word matching: it also finds objects outside a list, so that what decides is matching
by meaning. CHAIR sees no object outside its list by construction: it has chance there (average precision as many wrong
captions as right ones, localization 0), and is an arm for objects in the list. Among right captions are some with a
synonym or hypernym. False alarms on these are the condition: a metric that flags them does not match by meaning.
"""

from __future__ import annotations

from polymodal.claim import MetricClaim
from polymodal.evaluation.chair import Chair
from polymodal.recipes.metrics.aloha import Recipe
from polymodal.types import Budget

claim = MetricClaim(
    sentence="Objects matched by meaning show hallucinations outside a fixed list better than objects matched by word, "
    "among right captions that use another word.",
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
    deciding=("out_of_list/average_precision_among_synonyms", "synonym/false_alarms"),
    margins={"synonym/false_alarms": 0.05},
    paper_results="13.6 % more hallucinated objects found than by CHAIR on HAT, 30.8 % more on nocaps-FOIL",
)
