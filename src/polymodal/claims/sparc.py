"""The claim of `sparc`, for `polymodal reproduce sparc`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.image_augmentation import ImageAugmentation
from polymodal.recipes.dual_encoders.sparc import Recipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

_towers = Recipe(
    image=ImageEncoderConfig(image_size=96, patch_size=12, depth=1),
    text=TextEncoderConfig(depth=1, context_length=48),  # the local loss needs tokens that know their context
    augmentation=ImageAugmentation(scale=(0.9, 1.0), hflip_prob=0.5),
    word_dropout=0.0,
    batch_size=64,
    optimizer=OptimizerConfig(learning_rate=2e-3),
)
claim = Claim(
    sentence="The sparse local loss makes patch vectors tell where the objects of a caption are, better than CLIP's.",
    baseline=dataclasses.replace(_towers, local_weight=0.0),
    treatment=_towers,
    further={
        "softmax grouping": dataclasses.replace(_towers, grouping="softmax"),
        "no threshold": dataclasses.replace(_towers, grouping="no_threshold"),
    },
    corpus="scenes",
    budget=Budget(steps=1000),
    seeds=5,
    metrics=(
        "test/segmentation/mIoU",
        "test/pointing_game/accuracy",
        "test/phrase_grounding/R@1",
        "test/text_to_image/R@1",
        "test_twitter/segmentation/mIoU",
        "test_twitter/text_to_image/R@1",
    ),
    paper_results="zero-shot segmentation mIoU on Pascal VOC 27.4 against 23.0 of CLIP (ViT-B/16)",
)
