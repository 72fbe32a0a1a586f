"""The claim of `improved_clip`, for `polymodal reproduce improved_clip`."""

from __future__ import annotations

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.improved_clip import Recipe
from polymodal.types import Budget

claim = Claim(
    sentence="Strong augmentation, label smoothing and a projector of its own make CLIP better; added losses hardly.",
    baseline=Recipe(num_strong_views=0),
    treatment=Recipe(),
    further={
        "baseline + siamlip": Recipe(num_strong_views=0, ssl_loss="siamlip"),
        "treatment + siamlip": Recipe(ssl_loss="siamlip"),
    },
    corpus="emoji",
    budget=Budget(steps=2000),
    seeds=4,
    metrics=(
        "test/text_to_image/R@10",
        "test/text_to_image/MRR",
        "test/zero_shot/concept/top-1",
        "test_twitter/text_to_image/R@10",
        "test_twitter/zero_shot/concept/top-1",
    ),
    paper_results="up to 25 % relative in zero-shot accuracy; the advantage of added losses vanishes with the recipe",
)
