"""The claim of `inductive_moment_matching`, for `polymodal reproduce inductive_moment_matching`."""

from __future__ import annotations

from dataclasses import replace

from polymodal.claim import Claim
from polymodal.recipes.generation.inductive_moment_matching import Recipe
from polymodal.types import Budget

# Four patches an image: with sixteen, and learning rates up to 2e-3, no arm drew digits in as many seconds.
_imm = Recipe(
    batch_size=64,
    image_size=8,
    patch_size=4,
    width=128,
    depth=3,
    optimizer=replace(Recipe.optimizer, learning_rate=4e-3),
)
_flow = replace(_imm, objective="flow")
claim = Claim(
    sentence="Matching the distribution of four particles makes better images in one step, and in two, than matching "
    "each sample by itself, as consistency training does.",
    baseline=replace(_imm, objective="consistency"),
    treatment=_imm,
    further={
        "two particles": replace(_imm, num_particles=2),
        "flow matching": replace(_flow, temb_type="none"),
        "flow matching with s": _flow,
    },
    corpus="digits",
    budget=Budget(steps=800),
    seeds=5,
    metrics=(
        *(f"test/generation_in_{steps}/frechet_distance" for steps in (1, 2, 4, 8, 32)),
        "test/real_images/frechet_distance",
        *(f"test/generation_in_{steps}/kernel_distance" for steps in (1, 2, 4, 8, 32)),
        *(f"test/generation_in_{steps}/accuracy" for steps in (1, 2, 4, 8, 32)),
        "test/real_images/accuracy",
    ),
    deciding=("test/generation_in_1/frechet_distance", "test/generation_in_2/frechet_distance"),
    tuning={"learning_rate": (2e-3, 4e-3, 8e-3)},
    tuning_fraction=0.5,
    tuned_like={"two particles": "treatment", "flow matching with s": "flow matching"},
    paper_results="ImageNet-256 FID in one, two and eight steps 8.05, 3.99 and 1.99, against 34.24 of consistency "
    "training (iCT) in one; CIFAR-10 3.20 and 1.98, against 2.83 and 2.46 of iCT; flow matching 6.35 in 142 steps",
)
