"""The claim of `medflip`, for `polymodal reproduce medflip`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.medflip import Recipe
from polymodal.types import Budget

_masked = Recipe()
claim = Claim(
    sentence="In equal wall-clock time, with half of the patches dropped images are found by captions no worse.",
    baseline=dataclasses.replace(_masked, mask_ratio=0.0),
    treatment=_masked,
    corpus="emoji",
    budget=Budget(seconds=30),
    seeds=5,
    metrics=("test/text_to_image/R@10",),
)
