"""The claim of `abn_blip`, for `polymodal reproduce abn_blip`: a query for each finding against shared queries."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.captioning.abn_blip import Recipe
from polymodal.types import Budget

# All arms begin with one encoder and its classifier, which are trained first.
_start = Recipe(classifier_fraction=1.0)
_treatment = Recipe(classifier_fraction=0.0)
claim = Claim(
    sentence="A query for each finding, with contrast and sentences finding by finding, states findings in reports "
    "better than as many shared queries that are trained on whole reports (BLIP-2), and so it does the rarest third.",
    baseline=dataclasses.replace(_treatment, alignment="report", max_new_tokens=94),
    treatment=_treatment,
    further={"detached targets": dataclasses.replace(_treatment, detach_targets=True)},
    start=_start,
    start_budget=Budget(steps=300),
    corpus="studies",
    budget=Budget(steps=500),
    seeds=3,
    metrics=(
        "test/report/macro_F1",
        "test/report/tail/macro_F1",
        "test/report/image_gain",
        "test/report/tail/recall",
        "test/report/head/recall",
        "test/report/sentence_accuracy",
        "test/report/BLEU-4",
        "test/report/CIDEr",
        "test/presence/AUC",
        "test/presence/macro_F1",
    ),
    deciding=("test/report/macro_F1", "test/report/tail/macro_F1"),
    tuning={"optimizer.learning_rate": (1e-3, 3e-3)},
    tuning_fraction=0.5,
    tuned_like={"detached targets": "treatment"},
    paper_results="better accuracy and clinical relevance than medical vision-language models and 3-D report "
    "generators (abstract; numbers could not be read)",
)
