"""The claim of `moma`, for `polymodal reproduce moma`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.any_to_any.moma import Recipe
from polymodal.types import Budget

_moma = Recipe(stage_fractions=(0.0, 0.95, 0.05))
claim = Claim(
    sentence="Experts that choose among the tokens of their own modality reach a lower loss than a dense model of as "
    "many operations a token, above all on images.",
    baseline=dataclasses.replace(_moma, modality_aware=False, num_text_experts=1, num_image_experts=0),
    treatment=_moma,
    further={
        "one expert each": dataclasses.replace(_moma, num_text_experts=1, num_image_experts=1),
        "mixed experts": dataclasses.replace(_moma, modality_aware=False),
    },
    start=dataclasses.replace(_moma, stage_fractions=(1.0, 0.0, 0.0)),
    start_budget=Budget(steps=300),
    corpus="scenes",
    budget=Budget(steps=400),
    seeds=3,
    metrics=(
        "test/all/nll_per_token",
        "test/image/nll_per_token",
        "test/text/nll_per_token",
        "test_twitter/image/nll_per_token",
        "test_twitter/text/nll_per_token",
    ),
    paper_results="at 1.4B, the loss of a dense model with 3.7 times fewer operations (text 2.6, image 5.2) with four "
    "experts each; 3 times with eight mixed ones",
)
