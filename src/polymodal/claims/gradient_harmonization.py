"""The claim of `gradient_harmonization`, for `polymodal reproduce gradient_harmonization`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.optimization.gradient_harmonization import Recipe
from polymodal.types import Budget

_swapped = Recipe(mismatch_rate=0.4)
_aligned = Recipe()
claim = Claim(
    sentence="Where sounds and texts do not always belong to their video, realigned gradients and a curriculum by "
    "their agreement make better retrieval than the plain sum.",
    baseline=_swapped,
    treatment=dataclasses.replace(_swapped, gradient_harmonization="both"),
    further={
        "nothing swapped": _aligned,
        "nothing swapped, both": dataclasses.replace(_aligned, gradient_harmonization="both"),
    },
    corpus="clips",
    budget=Budget(steps=600),
    seeds=3,
    metrics=(
        "test/text_to_video/R@10",
        "test/text_to_video/R@1",
        "test/sound_to_video/R@10",
        "test/linear_probe_motion/accuracy",
    ),
    paper_results="better than VATT on UCF101, HMDB51, ESC-50, YouCook2 and MSR-VTT; figures are not in the abstract",
)
