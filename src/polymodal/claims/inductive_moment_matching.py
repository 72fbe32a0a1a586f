"""The claim of `inductive_moment_matching`, for `polymodal reproduce inductive_moment_matching`."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.generation.inductive_moment_matching import Recipe
from polymodal.types import Budget

_jumps = Recipe(image_size=8, width=64, depth=3, optimizer=dataclasses.replace(Recipe.optimizer, learning_rate=2e-3))
claim = Claim(
    sentence="Trained for jumps of any length, a network makes better images in one step than flow matching does.",
    baseline=dataclasses.replace(_jumps, objective="flow"),
    treatment=_jumps,
    further={
        "two particles": dataclasses.replace(_jumps, num_particles=2),
        "one particle (consistency)": dataclasses.replace(_jumps, objective="consistency"),
    },
    corpus="digits",
    budget=Budget(steps=1500),
    seeds=3,
    metrics=(
        "test/generation_in_1/frechet_distance",
        "test/generation_in_2/frechet_distance",
        "test/generation_in_4/frechet_distance",
        "test/generation_in_8/frechet_distance",
        "test/generation_in_32/frechet_distance",
        "test/real_images/frechet_distance",
        "test/generation_in_1/kernel_distance",
        "test/generation_in_4/kernel_distance",
        "test/generation_in_1/accuracy",
        "test/generation_in_4/accuracy",
        "test/real_images/accuracy",
    ),
    paper_results="CIFAR-10 FID 3.20 in one step and 1.98 in two, against 6.35 of flow matching in 142",
)
