"""The claim of `simvg`, for `polymodal reproduce simvg`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.grounding.simvg import Recipe
from polymodal.types import Budget

_base = Recipe()
claim = Claim(
    sentence="Fusing image and words in the encoder finds what is meant better than fusing them in the head.",
    baseline=dataclasses.replace(_base, fusion="head"),
    treatment=_base,
    further={"token branch alone": dataclasses.replace(_base, distill_type="none")},
    corpus="referring",
    budget=Budget(steps=3000),
    seeds=3,
    metrics=(
        "test/referring/token/acc@0.5",
        "test/referring/decoder/acc@0.5",
        "test/referring/token/mean_IoU",
        "test/referring/token/image_gain",
        "test/referring/decoder/image_gain",
        *(f"test/referring/token/{count}_clauses/acc@0.5" for count in (1, 2, 3, 4)),
        "test_twitter/referring/token/acc@0.5",
    ),
    paper_results="RefCOCO val 90.5 % with the decoder branch of ViT-L/32; token branch after distillation 93.0",
)
