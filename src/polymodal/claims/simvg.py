"""The claims of `simvg`, for `polymodal reproduce simvg`: fusion in the encoder, and distillation (`--claim dwbd`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.recipes.grounding.simvg import Recipe
from polymodal.types import Budget

# 4 x 4 patches an image; the default's 3 x 3 are as large as an object. After 600 steps a model of this size is still
# at chance (decoder 24 %, chance 25 %) and makes no use of the image, so that the budget is as long as 12 minutes allow
# and the tuning short; a run that stays at chance gives no verdict.
_base = Recipe(
    batch_size=32,
    encoder=MultiwayEncoderConfig(image_size=64, patch_size=16),
    caption_fraction=0.2,
    optimizer=dataclasses.replace(Recipe.optimizer, learning_rate=2e-3),
)
TUNING = {"optimizer.learning_rate": (1e-3, 3e-3)}
TUNING_FRACTION = 0.2
CLAUSES = (1, 2, 3, 4)
claim = Claim(
    sentence="Fusing image and words in the encoder finds what is meant better than fusing them in the decoder of the "
    "head.",
    baseline=dataclasses.replace(_base, fusion="head"),
    treatment=_base,
    corpus="referring",
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/referring/decoder/acc@0.5",  # the token branch fuses nothing with fusion in the head
        "test/referring/decoder/mean_IoU",
        "test/referring/decoder/image_gain",
        *(f"test/referring/decoder/{count}_clauses/acc@0.5" for count in CLAUSES),
        "test/referring/token/acc@0.5",
        "test/referring/token/image_gain",
        "test_twitter/referring/decoder/acc@0.5",
    ),
    tuning=TUNING,
    tuning_fraction=TUNING_FRACTION,
    paper_results="RefCOCO val 90.5 % with the decoder branch of ViT-L/32",
)
dwbd = Claim(
    sentence="Distillation from the decoder branch, weighted by the decoder's quality, makes the token branch better "
    "than the ground truth alone.",
    baseline=dataclasses.replace(_base, distill_type="none"),
    treatment=_base,
    corpus="referring",
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/referring/token/acc@0.5",
        "test/referring/token/mean_IoU",
        "test/referring/token/image_gain",
        "test/referring/decoder/acc@0.5",
        *(f"test/referring/token/{count}_clauses/acc@0.5" for count in CLAUSES),
    ),
    tuning=TUNING,
    tuning_fraction=TUNING_FRACTION,
    paper_results="the token branch is about 1 point below the decoder; RefCOCO val 93.0 % with two-stage distillation",
)
