"""Examples and batches that a recipe must bear: what is empty, and what has more padding than it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.columns.words import NO_FIELD
from polymodal.data.sequence import PackedSequences
from polymodal.encoders.speech_text import num_output_frames
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.document import PageTokens
from polymodal.modalities.padding import Padded, mask_of
from polymodal.modalities.text import Tokens
from polymodal.modalities.thread import Thread
from polymodal.types import Batch, Example

PADDING = 4  # positions more
OF_TOKENS = {  # entries of a batch that say something of each token of another one
    "masked_words": "words",
    "fields": "words",
    "masked_tokens": "text",
    "masked_text": "text",
    "masked_transcript": "transcript",
    "masked_pair": "pair",
}
EMPTY: Mapping[str, Callable[[Any], Any]] = {
    "words": lambda words: [],
    "text": lambda captions: [caption._replace(text="") for caption in captions],
    "sound": lambda sound: np.zeros_like(sound[:4]),
    "table": lambda row: row._replace(
        numbers=np.full_like(row.numbers, np.nan), categories=np.full_like(row.categories, -1)
    ),
    "history": lambda items: items[:0],
    "regions": lambda regions: [],
    "expressions": lambda expressions: [one for one in expressions if not one.boxes],
    "points": np.zeros_like,
    "thread": lambda example: example._replace(thread=Thread()),
}
LONGER: Mapping[str, Callable[[Any], Any]] = {
    "text": lambda text: f"{text} {text}",
    "sound": lambda sound: np.concatenate([sound, sound]),
    "views": lambda views: np.concatenate([views, views]),
    "thread": lambda example: (f"{example.thread.question_text} or not", example.thread.question_code),
}


def emptied(examples: list[Example], column: str, count: int) -> list[Example]:
    """The first `count` examples with nothing in a column."""
    return [
        example | {column: EMPTY[column](example[column])} if place < count else example
        for place, example in enumerate(examples)
    ]


def all_masked(batch: Batch) -> Batch:
    """The batch with all that can be masked."""
    return batch | {name: _positions(batch, name) for name in _masks(batch)}


def none_masked(batch: Batch) -> Batch:
    """The batch with nothing masked."""
    return batch | {name: torch.zeros_like(batch[name]) for name in _masks(batch)}


def _masks(batch: Batch) -> list[str]:
    return [name for name, entry in batch.items() if name.startswith("masked_") and isinstance(entry, Tensor)]


def _positions(batch: Batch, name: str) -> Tensor:
    """True where the mask of this name may be True: not at padding and marks."""
    if name == "masked_sound":
        return mask_of(num_output_frames(batch["sound"].lengths), batch[name].shape[1])
    if name not in OF_TOKENS:
        return torch.ones_like(batch[name])
    entry = batch[OF_TOKENS[name]]
    return entry.word >= 0 if isinstance(entry, PageTokens) else entry.content_mask


def with_padding(batch: Batch) -> Batch:
    """The batch with more padding in all sequences."""
    wider = {name: _wider(entry) for name, entry in batch.items()}
    for name, tokens in OF_TOKENS.items():
        if name in batch and tokens in batch:
            wider[name] = F.pad(batch[name], (0, PADDING), value=NO_FIELD if name == "fields" else 0)
    if "masked_sound" in batch:
        frames = int(num_output_frames(torch.tensor([wider["sound"].values.shape[1]])))
        wider["masked_sound"] = F.pad(batch["masked_sound"], (0, frames - batch["masked_sound"].shape[1]))
    return wider


def _wider(entry: Any) -> Any:
    if isinstance(entry, Tokens):
        return replace(entry, ids=F.pad(entry.ids, (0, PADDING)))
    if isinstance(entry, PageTokens):
        boxes, word = F.pad(entry.boxes, (0, 0, 0, PADDING)), F.pad(entry.word, (0, PADDING), value=-1)
        return PageTokens(_wider(entry.tokens), boxes, word)
    if isinstance(entry, Padded):
        more = entry.values.new_zeros(len(entry), PADDING, *entry.values.shape[2:])
        return replace(entry, values=torch.cat([entry.values, more], dim=1))
    if isinstance(entry, PaddedBoxes):
        return replace(entry, boxes=F.pad(entry.boxes, (0, 0, 0, PADDING), value=0.5))
    if isinstance(entry, PackedSequences):
        names = ("ids", "document", "position", "modality", "predicted")
        return replace(entry, **{name: F.pad(getattr(entry, name), (0, PADDING)) for name in names})
    return entry
