"""The claims of `uniqa`, for `polymodal reproduce uniqa`: texts about both tasks against one, and which comments
(`--claim purification`). All arms begin with a dual encoder of the same images and captions of what they show."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.uniqa import Recipe
from polymodal.types import Budget

_both = Recipe(batch_size=64, num_labels=100, adapter_fraction=0.2)
_base = dataclasses.replace(
    _both, text_columns=("caption",), comments="none", adapter_fraction=0.0, equal_texts_match=False
)
METRICS = (
    "test/predict_quality/SRCC",
    "test/predict_aesthetics/SRCC",
    "test/predict_quality/PLCC",
    "test/predict_aesthetics/PLCC",
    "test/zero_shot_quality/SRCC",
    "test/zero_shot_aesthetics/SRCC",
    "test/linear_regression_quality/SRCC",
    "test/linear_regression_aesthetics/SRCC",
)
TUNING = {"learning_rate": (1e-3, 2e-3, 4e-3)}
claim = Claim(
    sentence="With 100 labels of each score, pre-training on texts about quality and aesthetics predicts both better "
    "than pre-training on as many texts about quality alone.",
    baseline=dataclasses.replace(_both, pretraining_scores=("quality",)),
    treatment=_both,
    further={
        "aesthetics alone": dataclasses.replace(_both, pretraining_scores=("aesthetics",)),
        "captions": dataclasses.replace(_both, text_columns=("caption",), comments="none", equal_texts_match=False),
    },
    start=_base,
    start_budget=Budget(steps=150),
    corpus="rated_images",
    budget=Budget(steps=500),
    seeds=5,
    metrics=METRICS,
    deciding=METRICS[:2],
    tuning=TUNING,
    tuning_fraction=0.5,
    tuned_like={"aesthetics alone": "baseline", "captions": "baseline"},
    paper_results="SRCC 0.828 against 0.764 on CLIVE and 0.844 against 0.812 on KonIQ with few labels; state of the "
    "art on quality and aesthetics",
)
# As many comments an image in both arms.
_purified = dataclasses.replace(_both, pretraining_scores=("aesthetics",))
purification = Claim(
    sentence="Comments that relevance and length select give better predictions of aesthetics than as many of all "
    "comments.",
    baseline=dataclasses.replace(_purified, comments="random"),
    treatment=_purified,
    further={"no comments": dataclasses.replace(_purified, comments="none")},
    start=_base,
    start_budget=Budget(steps=150),
    corpus="rated_images",
    budget=Budget(steps=500),
    seeds=5,
    metrics=("test/predict_aesthetics/SRCC", "test/predict_aesthetics/PLCC", "test/zero_shot_aesthetics/SRCC"),
    tuning=TUNING,
    tuning_fraction=0.5,
    tuned_like={"no comments": "treatment"},
    paper_results="no numbers of the ablation could be read",
)
