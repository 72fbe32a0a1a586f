"""The claims of `abn_blip`, for `polymodal reproduce abn_blip`: a query for each finding against shared queries, and
what the soft targets are (`--claim targets`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.captioning.abn_blip import Recipe
from polymodal.types import Budget

METRICS = (
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
)
TUNING = {"optimizer.learning_rate": (1e-3, 2e-3)}
# All arms begin with one encoder and its classifier, which are trained first.
_start = Recipe(classifier_fraction=1.0)
_treatment = Recipe(classifier_fraction=0.0)
claim = Claim(
    sentence="A query for each finding, with contrast and sentences finding by finding, states findings in reports "
    "better than as many shared queries that are trained on whole reports (BLIP-2), and misses fewer of the rarest "
    "third.",
    baseline=dataclasses.replace(_treatment, alignment="report", max_new_tokens=94),
    treatment=_treatment,
    start=_start,
    start_budget=Budget(steps=300),
    corpus="studies",
    budget=Budget(steps=700),
    seeds=3,
    metrics=METRICS,
    # Test studies have 29 findings of the rarest third: enough for recall, whose false alarms the macro F1 counts.
    deciding=("test/report/macro_F1", "test/report/tail/recall"),
    tuning=TUNING,
    tuning_fraction=0.4,
    paper_results="better accuracy and clinical relevance than medical vision-language models and 3-D report "
    "generators (abstract; numbers could not be read)",
)
targets = Claim(
    sentence="Soft targets that the predicted presence is detached from state findings in reports as well as those of "
    "the released code, and leave the classifier as good.",
    baseline=_treatment,
    treatment=dataclasses.replace(_treatment, detach_targets=True),
    further={"sharper targets": dataclasses.replace(_treatment, target_temperature=0.1)},
    start=_start,
    start_budget=Budget(steps=300),
    corpus="studies",
    budget=Budget(steps=500),
    seeds=3,
    metrics=METRICS,
    deciding=("test/report/macro_F1", "test/presence/AUC"),
    margins={"test/report/macro_F1": 0.03, "test/presence/AUC": 0.02},
    tuning=TUNING,
    tuning_fraction=0.4,
    tuned_like={"sharper targets": "treatment"},
    paper_results="the released code does not detach; no comparison could be read",
)
