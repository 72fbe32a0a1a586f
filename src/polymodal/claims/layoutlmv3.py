"""The claims of `layoutlmv3`, for `polymodal reproduce layoutlmv3`: pre-training, fine-tuning (`--claim fields`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.documents.layoutlmv3 import Recipe
from polymodal.types import Budget

TUNING = {"optimizer.learning_rate": (1e-3, 2e-3, 4e-3)}
# Fine-tuning on fields, of which the probe of patches asks, would teach every arm what is to tell them apart.
_pretrained = Recipe(segment_level_layout=False, finetune_fraction=0.0)
# Word boxes, because segment boxes alone group the words of a field; pre-training takes the larger part of the budget.
_tuned = dataclasses.replace(_pretrained, finetune_fraction=0.2)
claim = Claim(
    sentence="Predicting masked patches (MIM) and word-patch alignment (WPA), besides masked words, makes patches tell "
    "what lies in them, and words tell which patch they lie in.",
    baseline=dataclasses.replace(_pretrained, use_mim=False, use_wpa=False),
    treatment=_pretrained,
    further={"mlm and mim": dataclasses.replace(_pretrained, use_wpa=False)},
    corpus="documents",
    budget=Budget(steps=240),
    seeds=3,
    metrics=(
        "test/patch_fields/accuracy",
        "test/word_to_patch/hit_rate",
        "test/linear_probe_kind/image/accuracy",
        "test/linear_probe_kind/page/accuracy",
    ),
    deciding=("test/patch_fields/accuracy", "test/word_to_patch/hit_rate"),
    tuning=TUNING,
    paper_results="PubLayNet mAP, of the image alone: MLM diverges, MLM and MIM 94.4, all three 94.4",
)
fields = Claim(
    sentence="Predicting masked patches (MIM) and word-patch alignment (WPA), besides masked words, makes fields "
    "easier to classify after fine-tuning.",
    baseline=dataclasses.replace(_tuned, use_mim=False, use_wpa=False),
    treatment=_tuned,
    further={"mlm and mim": dataclasses.replace(_tuned, use_wpa=False)},
    corpus="documents",
    budget=Budget(steps=300),
    seeds=3,
    metrics=("test/fields/entity_f1", "test/fields/word_accuracy"),
    tuning=TUNING,
    paper_results="FUNSD F1: MLM 89.4, MLM and MIM 89.2, all three 89.8",
)
