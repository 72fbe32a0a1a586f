"""The claim of `set_level_attack`, for `polymodal reproduce set_level_attack`.

The victims' training images are attacked. Captions of `emoji` are short: one word is often all that a caption says, so
that a caption with another word is no adversarial example but another caption. The arms `images only` leave captions
unchanged.
"""

from __future__ import annotations

import dataclasses

from polymodal.claim import AttackClaim
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.recipes.security.set_level_attack import Recipe
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget

_set = Recipe(eps=8.0, step_size=2.0)  # images of 32 px need more than the paper's 2 of 255
_pair = dataclasses.replace(_set, use_all_captions=False, scales=(), update_text_twice=False)
_clip = clip.Recipe(
    image=ImageEncoderConfig(),
    text=TextEncoderConfig(),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    word_dropout=0.0,
)
_siglip = siglip.Recipe(
    image=_clip.image, text=_clip.text, optimizer=OptimizerConfig(learning_rate=1e-3), word_dropout=0.0
)
_deep = dataclasses.replace(
    _clip,
    image=ImageEncoderConfig(patch_size=4, depth=3, pool_type="cls"),
    text=TextEncoderConfig(depth=2, pool_type="eos"),
)
claim = AttackClaim(
    sentence="Images and captions perturbed as sets fool other models more often than those perturbed as pairs.",
    baseline=_pair,
    treatment=_set,
    further={
        # The image part alone: the word that a caption loses decides most of the success of both arms above.
        "pair, images only": dataclasses.replace(_pair, top_k=0),
        "set, images only": dataclasses.replace(_set, top_k=0),
        "all captions, one scale, images only": dataclasses.replace(_set, scales=(), top_k=0),
        "one caption, all scales, images only": dataclasses.replace(_set, use_all_captions=False, top_k=0),
        "pair, five restarts": dataclasses.replace(_pair, restarts=5),
        "pair, attacked again": dataclasses.replace(_pair, update_text_twice=True),
        "Sep-Attack": dataclasses.replace(_pair, guidance="self"),
        "captions only": dataclasses.replace(_pair, guidance="self", attack_images=False),
        "random pixels": dataclasses.replace(_pair, top_k=0, num_iters=0),
    },
    victims={"clip": _clip, "siglip": _siglip, "deep clip": _deep},
    # Training images of the victims: success counts queries that were right before, and on the test split of `emoji`
    # models of this size are right too seldom.
    split="train",
    examples=200,
    corpus="emoji",
    budget=Budget(steps=600),
    seeds=3,
    metrics=(
        "other_models/attack_success@1",
        "other_models/attack_success@10",
        "same_model/attack_success@1",
        "same_model/attack_success@10",
        "other_models/R@1_before",
        *(
            f"{source}_to_{target}/{way}/attack_success@1"
            for source in ("clip", "siglip", "deep clip")
            for target in ("clip", "siglip", "deep clip")
            for way in ("image_to_text", "text_to_image")
        ),
    ),
    paper_results="ALBEF to TCL 45.4 % of images and 55.3 % of captions, against 15.2 % and 29.5 % of Co-Attack",
)
