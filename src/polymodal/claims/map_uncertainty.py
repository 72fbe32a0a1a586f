"""The claims of `map_uncertainty`, for `polymodal reproduce map_uncertainty`: Gaussians against points, and the margin
of the entropy (`--claim margin`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.fusion_encoders.map_uncertainty import Recipe
from polymodal.types import Budget

# Points have sigma nowhere: their SRCC is 0, and that of the length of captions, which needs no method, is beside it.
_gaussians = Recipe(finetune_fraction=0.0)
_points = dataclasses.replace(_gaussians, uncertainty=False)
claim = Claim(
    sentence="Tokens that are Gaussians find more of the images of captions that fit several than points do, and their "
    "variance grows with the number of images that a caption fits.",
    baseline=_points,
    treatment=_gaussians,
    further={"without sequence attention": dataclasses.replace(_gaussians, sequence_attention=False)},
    corpus="emoji_keywords",
    budget=Budget(steps=320),
    seeds=5,
    metrics=(
        "test/ambiguity/R-precision",
        "test/ambiguity/SRCC",
        "test/text_to_image/R@1",
        "test/text_to_image/R@5",
        "test/matching/text_to_image/R@5",
        "test/matching/ECE",
        "test/ambiguity/fused_SRCC",
        "test/ambiguity/length_SRCC",
        "test/ambiguity/log_sigma",
    ),
    deciding=("test/ambiguity/R-precision", "test/ambiguity/SRCC"),
    tuning={"optimizer.learning_rate": (1e-3, 3e-3)},
    tuning_fraction=0.4,
    tuned_like={"without sequence attention": "treatment"},
    paper_results="about 0.5 to 1 point over the same model without PDE in each task; VQA test-dev about 78.0, "
    "Flickr30k image retrieval R@1 about 83.8",
)
margin = Claim(
    sentence="A margin of the entropy keeps variances after fusion from collapsing.",
    baseline=dataclasses.replace(_gaussians, margin_weight=0.0),
    treatment=_gaussians,
    corpus="emoji_keywords",
    budget=Budget(steps=480),
    seeds=5,
    metrics=(
        "test/ambiguity/fused_log_sigma",
        "test/ambiguity/fused_SRCC",
        "test/ambiguity/R-precision",
        "test/matching/ECE",
    ),
)
