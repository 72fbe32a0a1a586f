"""The claim of `layoutlmv3`, for `polymodal reproduce layoutlmv3`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.documents.layoutlmv3 import Recipe
from polymodal.types import Budget

# Word boxes, because segment boxes alone group the words of a field; pre-training takes the larger part of the budget.
_base = Recipe(segment_level_layout=False, finetune_fraction=0.2)
claim = Claim(
    sentence="Predicting masked patches and aligning words with patches, besides predicting masked words, improves the "
    "representation of pages.",
    baseline=dataclasses.replace(_base, use_mim=False, use_wpa=False),
    treatment=_base,
    further={"mlm and mim": dataclasses.replace(_base, use_wpa=False)},
    corpus="documents",
    budget=Budget(steps=300),
    seeds=3,
    metrics=(
        "test/fields/entity_f1",
        "test/fields/word_accuracy",
        "test/linear_probe_kind/image/accuracy",
        "test/linear_probe_kind/page/accuracy",
    ),
    paper_results="FUNSD F1: MLM 89.4, MLM and MIM 89.2, all three 89.8; PubLayNet mAP, of the image alone: MLM "
    "diverges, 94.4 and 94.4",
)
