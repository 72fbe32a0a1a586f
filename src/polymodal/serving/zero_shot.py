"""Zero-shot classification: probabilities of classes that are named by texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polymodal.errors import UserError
from polymodal.evaluation.prompt_templates import prompts_of
from polymodal.layers.logit_scale import CLIP_INIT, LogitScale
from polymodal.modalities.video import SUFFIXES
from polymodal.serving.unreadable import each_readable
from polymodal.training.run import Run

DEFAULT_LOGIT_SCALE = CLIP_INIT  # for methods without a learned logit scale


@torch.no_grad()
def class_probabilities(model: Any, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the method's own probabilities, or else a softmax over similarities, scaled as CLIP begins."""
    if not hasattr(model, "zero_shot_probabilities"):
        learned = getattr(model, "logit_scale", None)
        scale = float(learned()) if isinstance(learned, LogitScale) else DEFAULT_LOGIT_SCALE
        return (scale * vectors @ classes.T).softmax(1)
    device = next(model.parameters()).device
    return model.zero_shot_probabilities(vectors.to(device), classes.to(device))


def classify_each(
    run: Run, files: Sequence[str], labels: Sequence[str], template: str = "{}"
) -> list[dict[str, float] | UserError]:
    """Return the probability of each label for every image or clip; for one that cannot be read, the error.

    Raises UserError when the run does not embed texts and images.
    """
    classes = run.embed(text=[prompt for label in labels for prompt in prompts_of(label, [template])])["text"]

    def classify(some: list[str]) -> list[dict[str, float]]:
        (column,) = {column_of(file) for file in some}
        rows = class_probabilities(run.model, run.embed(256, **{column: some})[column], classes)
        return [dict(zip(labels, row, strict=True)) for row in rows.tolist()]

    return each_readable(run, files, column_of, classify)


def column_of(file: str) -> str:
    """Return the modality of a file, by its suffix."""
    return "video" if file.lower().endswith(SUFFIXES) else "image"
