"""The claim of `mqdd`, for `polymodal reproduce mqdd`."""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.recipes.code.mqdd import Recipe
from polymodal.types import Budget

# All arms read the same pairs in the same order; only the losses of pre-training differ.
_mqdd = Recipe()
_mlm = replace(_mqdd, objectives="mlm")
claim = Claim(
    sentence="Pre-training with Question-Answer and Same-Post pairs beside masked language modeling makes the same "
    "encoder detect duplicates better after the same fine-tuning than masked language modeling alone.",
    baseline=_mlm,
    treatment=_mqdd,
    further={
        "MLM and SP": replace(_mqdd, objectives="mlm+sp"),
        "MLM and QA": replace(_mqdd, objectives="mlm+qa"),
    },
    corpus="function_posts",
    budget=Budget(steps=300),
    seeds=3,  # of about a minute each, which is what the time of a claim has room for
    metrics=(
        # In single short runs of both arms, R@10 was ten times chance, and the classifier's F1 within 5 points of it.
        "test/duplicates/R@10",
        "test/duplicates/macro_F1",
        "test/duplicates/cosine/macro_F1",
        "test/duplicates/MRR",
        "test/duplicates/duplicate/accuracy",
        "test/duplicates/similar_text/accuracy",
        "test/duplicates/similar_tags/accuracy",
        "test/duplicates/different/accuracy",
        "test/duplicates/bm25/macro_F1",
        "test/duplicates/bm25/R@10",
        "test/duplicates/length/macro_F1",
    ),
    tuning={"learning_rate": (5e-4, 1e-3)},
    tuning_fraction=0.3,
    tuned_like={"MLM and SP": "treatment", "MLM and QA": "treatment"},
    paper_results="macro F1 of about 75 against about 71 of CodeBERT on SODD (from sources that could not be checked)",
)
