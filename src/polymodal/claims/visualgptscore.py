"""The claim of `visualgptscore`, for `polymodal reproduce visualgptscore`: one model a seed, scored in five ways.

All arms begin with the same trained model and learn nothing more (their learning rate is 0), so that they differ in the
score alone and there is nothing to tune. Shuffled words are implausible, and exchanged roles are as frequent as in
training in `test_prior`, so that the prior helps, as in ARO; captions of `test` are equally frequent, and it does not,
as in Winoground. `blind` says how far the prior gets alone.
"""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.evaluation.pair_scores import MatchingScore
from polymodal.modalities.image_augmentation import NONE
from polymodal.recipes.captioning.visualgptscore import Recipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

_trained = Recipe(
    batch_size=32,
    optimizer=OptimizerConfig(learning_rate=2e-3),
    image=ImageEncoderConfig(image_size=64, patch_size=16, stem=(32, 64), width=64, depth=2, pool_type="cls"),
    augmentation=NONE,  # a crop changes sizes and places
)
_scored = replace(_trained, optimizer=OptimizerConfig(learning_rate=0.0))
claim = Claim(
    sentence="The likelihood of a caption, divided by its prior to a power that is tuned on other items, tells "
    "captions apart from shuffled words and from exchanged roles better than the matching head of the same model.",
    baseline=replace(_scored, score=MatchingScore("itm")),
    treatment=replace(_scored, score=MatchingScore("likelihood")),
    further={
        "ITC": replace(_scored, score=MatchingScore("itc")),
        "alpha 0": replace(_scored, score=MatchingScore(alpha=0.0)),
        "alpha 1": replace(_scored, score=MatchingScore(alpha=1.0)),
    },
    start=_trained,
    start_budget=Budget(steps=1200),
    corpus="minimal_pairs",
    budget=Budget(steps=1),
    seeds=5,
    metrics=(
        "test/foils/order/accuracy",
        "test/winoground/text",
        "test/winoground/image",
        "test/winoground/group",
        "test/foils/relation/accuracy",
        "test/foils/attribute/accuracy",
        "test_prior/foils/relation/accuracy",
        "test/foils/order/blind/accuracy",
        "test/foils/relation/blind/accuracy",
        "test_prior/foils/relation/blind/accuracy",
        "test/foils/relation/alpha",
        "test_prior/foils/relation/alpha",
        "test/foils/prior/rank_correlation",
        "test/image_to_text/R@10",
    ),
    deciding=("test/foils/order/accuracy", "test_prior/foils/relation/accuracy"),
    paper_results="Winoground of BLIP with tuned alpha: text 36.5, image 21.5, group 16.8; likelihoods alone are near "
    "the best on shuffled captions of ARO, where CLIP is at 46 to 60; alpha 1 helps where all captions are plausible",
)
