"""The claims of `activity_clip`: contrastive transfer against training from scratch on few labels, and whether it is
the language of captions that helps (`--claim language`)."""

from __future__ import annotations

import dataclasses

from polymodal.claim import Claim
from polymodal.recipes.dual_encoders.activity_clip import Recipe
from polymodal.types import Budget

METRICS = tuple(
    f"{split}/classify_activity/{metric}" for split in ("test", "test_openmoji") for metric in ("accuracy", "macro_F1")
)
_start = Recipe(adaptation="zero_shot")
_transfer = Recipe(pretraining_fraction=0.0, num_labels=30, batch_size=32)
_scratch = dataclasses.replace(_transfer, pretraining="none")


def _with_labels(count: int) -> dict[str, Recipe]:
    return {
        f"scratch, {count or 'all'} labels": dataclasses.replace(_scratch, num_labels=count),
        f"transfer, {count or 'all'} labels": dataclasses.replace(_transfer, num_labels=count),
    }


claim = Claim(
    sentence="With 30 labelled images, a tower that was pre-trained on images and captions and is fine-tuned recognizes"
    " activities better than the same tower trained from scratch with the same regularization.",
    baseline=_scratch,
    treatment=_transfer,
    further={
        **_with_labels(12),
        **_with_labels(0),
        "linear head": dataclasses.replace(_transfer, adaptation="linear"),
        "contrastive classifier": dataclasses.replace(_transfer, adaptation="contrastive"),
    },
    start=_start,
    start_budget=Budget(steps=400),
    corpus="emoji_activities",
    budget=Budget(steps=100),
    seeds=5,
    metrics=METRICS,
    deciding=(METRICS[0],),
    tuning={"learning_rate": (5e-4, 1e-3, 2e-3), "tower_lr_scale": (0.1, 1.0)},
    tuned_like={
        "scratch, 12 labels": "baseline",
        "scratch, all labels": "baseline",
        "transfer, 12 labels": "treatment",
        "transfer, all labels": "treatment",
        "linear head": "treatment",
        "contrastive classifier": "treatment",
    },
    paper_results="41 % from scratch, 76 % fine-tuned multimodal CLIP; 285 images of MSCOCO, three classes",
)
_aligned = Recipe(num_labels=30, pretraining_fraction=0.8, tower_lr_scale=1.0)
language = dataclasses.replace(
    claim,
    sentence="With 30 labelled images, pre-training on each image's own captions recognizes activities better than on "
    "the same images with captions of others.",
    baseline=dataclasses.replace(_aligned, pretraining="shuffled_captions"),
    treatment=_aligned,
    further={"classifier of categories": dataclasses.replace(_aligned, pretraining="labels")},
    start=None,
    start_budget=None,
    budget=Budget(steps=350),
    tuning={"learning_rate": (1e-3, 2e-3)},
    tuned_like={"classifier of categories": "treatment"},
    paper_results="none: the paper has no such control",
)
