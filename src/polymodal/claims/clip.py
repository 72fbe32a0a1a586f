"""The claim of `clip`, for `polymodal reproduce clip`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.clip import Recipe
from polymodal.types import Budget

_learned = Recipe()
_fixed = dataclasses.replace(_learned, freeze=("logit_scale.*",))
claim = Claim(
    sentence="A learned temperature is better than one fixed at its initial value, 0.07.",
    baseline=_fixed,
    treatment=_learned,
    further={
        "fixed at 1": dataclasses.replace(_fixed, logit_scale_init=1.0),
        "fixed at 1/30": dataclasses.replace(_fixed, logit_scale_init=30.0),
        "fixed at 0.01": dataclasses.replace(_fixed, logit_scale_init=100.0),
    },
    corpus="emoji",
    budget=Budget(steps=450),
    seeds=5,
    metrics=(
        "test/text_to_image/R@10",
        "test/image_to_text/R@10",
        "test/zero_shot/concept/top-1",
        "test_twitter/text_to_image/R@10",
    ),
    tuning={"learning_rate": (1e-3, 2e-3, 4e-3)},
    tuning_fraction=0.5,
    tuned_like={"fixed at 1": "baseline", "fixed at 1/30": "baseline", "fixed at 0.01": "baseline"},
    paper_results="none: the temperature is learned 'to avoid turning as a hyper-parameter' (section 2.3)",
)
