"""The claims of `visualgptscore`, for `polymodal reproduce visualgptscore`: scores of one model a seed.

Both arms begin with the same trained model and learn nothing more (their learning rate is 0), so that they differ in
the score alone and there is nothing to tune; every evaluation has all scores of the model, of which the metrics name
further ones. Shuffled words are implausible, and exchanged roles are as frequent as in training in `test_prior`, so
that the prior alone (`blind`) helps, as in ARO; captions of `test` are equally frequent, and it does not, as in
Winoground. The matching head is no baseline: from random weights, it does not get below the loss of a constant guess
(0.637 nats, a positive in three pairs) in these budgets.
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
    sentence="The likelihood of a caption tells it apart from its own words in another order more often than the "
    "contrastive similarity of the same model.",
    baseline=replace(_scored, score=MatchingScore("itc")),
    treatment=replace(_scored, score=MatchingScore(alpha=0.0)),
    # How far it is so without the prior, which alone tells shuffled words.
    further={"alpha 1": replace(_scored, score=MatchingScore(alpha=1.0))},
    start=_trained,
    start_budget=Budget(steps=1200),
    corpus="minimal_pairs",
    budget=Budget(steps=1),
    seeds=5,
    metrics=(
        "test/foils/order/accuracy",
        "test/foils/relation/accuracy",
        "test/foils/attribute/accuracy",
        "test/winoground/text",
        "test/winoground/image",
        "test/winoground/group",
        "test/foils/order/blind/accuracy",
        "test/foils/order/itm/accuracy",
        "test/winoground/itm/text",
    ),
    paper_results="likelihoods are near the best on shuffled captions of ARO, where CLIP is at 46 to 60, and so are "
    "language models that see no image",
)
debiasing = replace(
    claim,
    sentence="Where captions are equally frequent in a test but not in training, the likelihood of a caption divided "
    "by its prior is right more often than the likelihood alone.",
    baseline=replace(_scored, score=MatchingScore(alpha=0.0)),
    treatment=replace(_scored, score=MatchingScore(alpha=1.0)),
    further={},
    start_budget=Budget(steps=3000),  # after 1200, no score tells who is left or above
    seeds=3,
    deciding=("test/winoground/text", "test/foils/relation/accuracy"),
    metrics=(
        "test/winoground/text",
        "test/foils/relation/accuracy",
        "test/winoground/image",
        "test/winoground/group",
        "test/foils/attribute/accuracy",
        "test/foils/order/accuracy",
        "test_prior/foils/relation/accuracy",
        # alpha tuned on other items, which falls where the test has the prior of training
        "test/winoground/alpha_cross_fitted/text",
        "test/foils/relation/alpha_cross_fitted/accuracy",
        "test_prior/foils/relation/alpha_cross_fitted/accuracy",
        "test/foils/relation/alpha",
        "test_prior/foils/relation/alpha",
        "test/foils/relation/blind/accuracy",
        "test_prior/foils/relation/blind/accuracy",
        "test/winoground/itc/text",
        "test/foils/prior/rank_correlation",
    ),
    paper_results="Winoground of BLIP with tuned alpha: text 36.5, image 21.5, group 16.8; alpha 1 helps where all "
    "captions are plausible",
)
