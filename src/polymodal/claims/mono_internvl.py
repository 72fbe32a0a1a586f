"""The claims of `mono_internvl`, for `polymodal reproduce mono_internvl`."""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.recipes.language_models.mono_internvl import Recipe
from polymodal.types import Budget

_mono = Recipe(
    batch_size=16,
    language_model=LanguageModelConfig(width=64, depth=3, num_heads=4, num_kv_heads=2, mlp_dim=176),
    text_corpus="glosses,scenes",
    concept_corpus="emoji",
    caption_noise=0.2,
)
_language = replace(_mono, stage_fractions=(1.0, 0.0, 0.0, 0.0, 0.0))
# S1.1 and S1.2 alone: a frozen language model is then bit for bit what it was at the start, whose figures on texts are
# therefore those of the treatment.
_visual = replace(_mono, stage_fractions=(0.0, 0.3, 0.7, 0.0, 0.0))
claim = Claim(
    sentence="New visual parameters in a frozen language model caption images as well as training all of it does, and "
    "no language is forgotten.",
    baseline=replace(_visual, visual_experts=False, freeze_llm=False),
    treatment=_visual,
    further={"frozen, without experts": replace(_visual, visual_experts=False)},
    start=_language,
    start_budget=Budget(steps=400),
    start_scored=True,
    corpus="scenes",
    budget=Budget(steps=600),
    seeds=3,
    deciding=("test/captions/bits_per_byte", "test/text/glosses/bits_per_byte"),
    margins={"test/captions/bits_per_byte": 0.02},
    metrics=(
        "test/captions/bits_per_byte",
        "test/captions/image_gain",
        "test/text/glosses/bits_per_byte",
        "test/text/scenes/bits_per_byte",
    ),
    # The baseline may keep its language by a small learning rate, if images can be learned at it.
    tuning={"learning_rate": (2e-4, 5e-4, 2e-3)},
    tuning_fraction=0.3,
    tuned_like={"frozen, without experts": "treatment"},
    paper_results="OCRBench 767 against 654 and VQA average 70.1 against 71.7 of a modular model with a vision "
    "encoder; text-only benchmarks as before",
)
# Both arms have the same stages: what is frozen in them and their schedules of the learning rate are the same, and the
# data of the three differ in their order alone.
_instructed = replace(_mono, stage_fractions=(0.0, 0.15, 0.35, 0.3, 0.2), concept_corpus="")
order = Claim(
    sentence="Visual pre-training from many noisy captions to tasks answers more questions about images than the same "
    "kinds of data mixed in all of its stages.",
    baseline=replace(_instructed, staged=False),
    treatment=_instructed,
    start=_language,
    start_budget=Budget(steps=400),
    corpus="scenes",
    budget=Budget(steps=1400),
    seeds=3,
    # Of the kinds of questions, only these cannot be answered from their words: color and size can.
    metrics=(
        "test/vqa/image_gain",
        "test/vqa/count/accuracy",
        "test/vqa/place/accuracy",
        "test/vqa/presence/accuracy",
        "test/vqa/relation/accuracy",
        "test/vqa/accuracy",
        "test/captions/bits_per_byte",
        "test_twitter/vqa/image_gain",
    ),
    tuning={"learning_rate": (1e-3, 2e-3)},
    tuning_fraction=0.3,
    paper_results="each stage adds to the benchmarks; training order is not compared with a mixture",
)
