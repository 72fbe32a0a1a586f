"""Images and texts by which an export is compared with its run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polymodal.modalities.text import Tokens
from polymodal.training import Run

SAMPLES = ("a red fruit", "Flagge: Frankreich", "smiling face with heart-eyes", "?")


def sample_pixels(run: Run, count: int) -> Tensor:
    """Return images of random noise, always the same."""
    size = run.recipe.image.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def sample_texts(run: Run) -> Tokens:
    """Return sample texts, tokenized by the run."""
    processor: Any = run.processor
    return processor.tokenizer(list(SAMPLES))


def tokenized_samples(tokenizer: Any) -> dict[str, Tensor]:
    """Return the same texts, tokenized by an exported tokenizer."""
    options = {"padding": True, "truncation": True, "return_attention_mask": True}  # SigLIP's gives none by itself
    given = tokenizer(list(SAMPLES), **options, return_tensors="pt")
    return {name: given[name] for name in ("input_ids", "attention_mask")}
