"""The claims of `medflip`, for `polymodal reproduce medflip`: patch dropping in equal time, and what is contrasted with
(`--claim targets`). Images are those of one vendor, as in other claims on `emoji`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.medflip import Recipe
from polymodal.types import Budget

METRICS = (
    "test/text_to_image/R@10",
    "test/zero_shot_category/accuracy",
    "test_openmoji/text_to_image/R@10",
    "test_openmoji/zero_shot_category/accuracy",
)
TUNING = {"learning_rate": (1e-3, 2e-3, 4e-3)}
_masked = Recipe()
claim = Claim(
    sentence="In equal wall-clock time, an encoder of which half of the patches are dropped finds images by captions "
    "better than one that is trained on whole images.",
    baseline=dataclasses.replace(_masked, mask_ratio=0.0),
    treatment=_masked,
    further={"three quarters dropped": dataclasses.replace(_masked, mask_ratio=0.75)},
    corpus="emoji",
    languages=("en",),
    budget=Budget(seconds=30),
    seeds=5,
    metrics=METRICS,
    tuning=TUNING,
    tuning_fraction=0.3,
    tuned_like={"three quarters dropped": "treatment"},
    paper_results="above MedCLIP, ConVIRT and GLoRIA on CheXpert-5x200 with shorter training; FLIP: 1.8 to 3.7 times "
    "as fast as CLIP at equal zero-shot accuracy on ImageNet",
)
_soft = Recipe(batch_size=32)
_one_hot = dataclasses.replace(_soft, entity_source="none")
targets = Claim(
    sentence="In batches of 32, targets from the entities of image and text are better than one-hot targets.",
    baseline=_one_hot,
    treatment=_soft,
    further={
        "no SVD loss": dataclasses.replace(_soft, svd_weight=0.0),
        "SVD loss of the other sign": dataclasses.replace(_soft, svd_loss="align"),
    },
    corpus="emoji",
    languages=("en",),
    budget=Budget(steps=300),
    seeds=5,
    metrics=METRICS,
    tuning=TUNING,
    tuning_fraction=0.3,
    tuned_like={"no SVD loss": "treatment", "SVD loss of the other sign": "treatment"},
    paper_results="no numbers of the paper could be read",
)
