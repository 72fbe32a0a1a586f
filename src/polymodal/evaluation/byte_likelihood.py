"""Bits per byte of texts, which compares language models of any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import DESCRIBE
from polymodal.data.processor import Processor
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Text
from polymodal.modalities.text import Caption
from polymodal.training.run import answers

BATCH = 32
MAX_TEXTS = 1000


def unigram_bits(training_texts: Sequence[str], texts: Sequence[str]) -> float:
    """Bits per byte of texts under how frequent each byte is in training texts, each byte counted once more.

    Without training texts it is 8: all bytes are equally likely.
    """
    counts, read = (
        np.bincount(np.frombuffer("".join(some).encode(), dtype=np.uint8), minlength=256)
        for some in (training_texts, texts)
    )
    likelihood = (counts + 1) / (counts.sum() + 256)
    return float(-(read @ np.log2(likelihood)) / max(read.sum(), 1))


def training_captions(corpus: Corpus) -> list[list[Caption]]:
    """The captions of examples of the training split, at most `MAX_TEXTS`, evenly spaced; [] without such a split."""
    if "train" not in corpus.splits:
        return []
    column = corpus.column_with(Text)
    stored = corpus.raw_values(corpus.sample("train", MAX_TEXTS), column)
    return [captions for one in stored if one is not None and (captions := corpus.columns[column].decode(one))]


def bits_per_byte(
    name: str,
    method: nn.Module,
    processor: Processor,
    texts: list[str],
    images: Sequence[Any] | None = None,
    training_texts: Sequence[str] = (),
) -> Score:
    """-log2 p of each text by its length in UTF-8, which compares models of any vocabulary; long texts weigh more.

    Chance: `unigram_bits` of `training_texts`.
    """
    columns = {"answer": texts}
    if images is not None:
        columns |= {"image": list(images), "question": [DESCRIBE] * len(texts)}
    log_likelihood = torch.cat(answers(method, processor, "log_likelihood", columns, BATCH)).numpy()
    size = np.array([len(text.encode()) for text in texts], dtype=float)
    bits = -log_likelihood / np.log(2) / np.maximum(size, 1)
    return Score(name, bits, unigram_bits(training_texts, texts), higher_is_better=False, weights=size)
