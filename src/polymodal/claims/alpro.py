"""The claim of `alpro`, for `polymodal reproduce alpro`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.video.alpro import Recipe
from polymodal.types import Budget

_whole = Recipe()
claim = Claim(
    sentence="Telling pairs before fusion, and naming crops as a prompter does, make better retrieval and answers than "
    "matching and hidden words alone.",
    baseline=dataclasses.replace(_whole, use_itc=False, use_pem=False),
    treatment=_whole,
    further={"contrast alone": dataclasses.replace(_whole, use_pem=False)},
    corpus="clips",
    budget=Budget(steps=2000),
    seeds=3,
    metrics=(
        "test/matching/text_to_video/R@1",
        "test/text_to_video/R@1",
        "test/vqa/accuracy",
        "test/vqa/object/accuracy",
        "test_new/matching/text_to_video/R@1",
        "test/regions/top-1",
        "test/regions/top1_confident",
    ),
    paper_results="MSRVTT retrieval R@1 28.5 with matching and hidden words, 32.8 with contrast, 33.9 with entities; "
    "MSVD questions 43.3, 45.5 and 45.9",
)
