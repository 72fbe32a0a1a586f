"""The claim of `mono_internvl`, for `polymodal reproduce mono_internvl`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.language_models.mono_internvl import Recipe
from polymodal.types import Budget

_seeing = Recipe(
    text_corpus="glosses,scenes", concept_corpus="emoji", caption_noise=0.2, stage_fractions=(0.0, 0.1, 0.45, 0.25, 0.2)
)
claim = Claim(
    sentence="New visual parameters in a frozen language model learn to see, and less language is forgotten than when "
    "all of it is trained.",
    baseline=dataclasses.replace(_seeing, visual_experts=False, freeze_llm=False),
    treatment=_seeing,
    start=dataclasses.replace(_seeing, stage_fractions=(1.0, 0.0, 0.0, 0.0, 0.0)),
    start_budget=Budget(steps=600),
    corpus="scenes",
    budget=Budget(steps=900),
    seeds=3,
    metrics=(
        "test/text/glosses/bits_per_byte",
        "test/text/scenes/bits_per_byte",
        "test/captions/bits_per_byte",
        "test/captions/image_gain",
        "test/vqa/accuracy",
        "test/vqa/image_gain",
        "test/vqa/count/accuracy",
        "test/vqa/presence/accuracy",
        "test/vqa/place/accuracy",
        "test_twitter/vqa/image_gain",
    ),
    paper_results="OCRBench 767 against 654 and VQA average 70.1 against 71.7 of a modular model with a vision "
    "encoder; text-only benchmarks as before",
)
