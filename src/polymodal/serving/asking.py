"""Questions about pictures to a run that writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.layers.decoding import Decoding
from polymodal.training.run import Run, evaluating, to_device
from polymodal.types import CanWrite


def ask_about(run: Run, pictures: Sequence[Any], question: str, decoding: Decoding, seed: int = 0) -> list[str]:
    """What the run writes about each picture (paths, bytes or Pillow pictures); without a question, a caption.

    seed: of what is drawn by lot. Raises UserError for a run that does not write, and for a picture that is none.
    """
    if not isinstance(run.model, CanWrite):
        raise UserError(f"The run '{run.name}' cannot answer; a method that can is mono_internvl.")
    processor: Any = run.processor
    columns: dict[str, list[Any]] = {"image": list(pictures)}
    if question:
        columns["question"] = [question] * len(pictures)
    try:
        batch = processor(**columns)
    except UnreadableExample as error:
        raise unusable(error) from error
    device = next(run.model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with evaluating(run.model):
        return processor.texts(run.model.write(to_device(batch, device), decoding, generator))
