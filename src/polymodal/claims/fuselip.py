"""The claim of `fuselip`, for `polymodal reproduce fuselip`: a joint sequence against two towers with fusion."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.fuselip import Recipe
from polymodal.types import Budget

_early = Recipe()
_module = dataclasses.replace(_early, fusion="module")
claim = Claim(
    sentence="One transformer over image and text tokens finds what an instruction makes of an image, among what other "
    "instructions make of it, more often than two towers whose vectors a module fuses.",
    baseline=_module,
    treatment=_early,
    further={
        "two towers, sum": dataclasses.replace(_early, fusion="sum"),
        "without MMM": dataclasses.replace(_early, mlm_probability=0.0),
    },
    corpus="scenes",
    budget=Budget(steps=600),
    seeds=3,
    metrics=(
        "test/tgit/R@1",
        "test/oi_pos/R@1",
        "test/vg_crop/R@1",
        "test/vqa_retrieval/accuracy",
        "test/text_to_image/R@10",
        "test/tgit/crop/R@1",
        "test/tgit/flip/R@1",
    ),
    # The towers have no tokenizer to train first: all arms see the same pairs.
    budget_fractions={"baseline": 0.8, "two towers, sum": 0.8},
    tuning={"learning_rate": (1e-3, 2e-3, 4e-3)},
    tuning_fraction=0.25,
    tuned_like={"two towers, sum": "baseline", "without MMM": "treatment"},
    paper_results="TGIT 94.3 against 69.4 (MLF) and 56.6 (SF), OI-Pos 70.8 against 47.4 and 45.9 (CC3M+MM, size B)",
)
