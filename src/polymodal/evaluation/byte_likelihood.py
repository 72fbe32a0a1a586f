"""Bits per byte of texts, which compares language models of any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from polymodal.data.conversation import DESCRIBE
from polymodal.data.processor import Processor
from polymodal.evaluation.statistics import Score
from polymodal.training.run import answers

BATCH = 32
MAX_TEXTS = 1000


def bits_per_byte(
    name: str, method: nn.Module, processor: Processor, texts: list[str], images: Sequence[Any] | None = None
) -> Score:
    """-log2 p of each text by its length in UTF-8, which compares models of any vocabulary; long texts weigh more."""
    columns = {"answer": texts}
    if images is not None:
        columns |= {"image": list(images), "question": [DESCRIBE] * len(texts)}
    log_likelihood = torch.cat(answers(method, processor, "log_likelihood", columns, BATCH)).numpy()
    size = np.array([len(text.encode()) for text in texts], dtype=float)
    return Score(name, -log_likelihood / np.log(2) / size, 8.0, higher_is_better=False, weights=size)
