"""Batches of unpaired speech, unpaired text, and speech with its transcript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.data.processor import Processor
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.rng import ExampleRNG
from polymodal.types import Example

POOLS = ("speech", "text", "pairs")
SILENCE = 8  # frames of a sound that stands in for none


class UnmaskedSpeechText(TypedDict):
    """Speech, text, and transcripts. pairs: rows of `sound` with one; where `paired`, their number, is 0, row 0."""

    sound: Padded
    text: Tokens
    paired: Int[Tensor, ""]
    pairs: Int[Tensor, " pairs"]
    transcript: Tokens


class SpeechTextRows(NamedTuple):
    """The examples of a batch that its sounds, its texts and its transcripts are of."""

    sounds: list[int]
    texts: list[int]
    pairs: list[int]


def silence(num_mel_bins: int) -> Float[np.ndarray, "frames bins"]:
    """Return a short empty sound, so that processes whose batch has no sound take the same steps."""
    return np.zeros((SILENCE, num_mel_bins), dtype=np.float32)


def speech_text_batch(
    examples: Sequence[Example],
    pools: Sequence[str],
    processor: Processor,
    example_rng: ExampleRNG,
    num_mel_bins: int,
) -> tuple[UnmaskedSpeechText, SpeechTextRows]:
    """Collate `sound` and `text` of examples, and return which of them are where.

    pools: what is used of each example, one of `POOLS`. Of what there is none, an empty one stands in: all processes
    take the same steps.
    """
    speech, text, pairs = ([n for n, pool in enumerate(pools) if pool == kind] for kind in POOLS)
    sounds = speech + pairs
    captions = [
        processor.text.sample_caption(example["text"], rng) if "text" in example else ""
        for example, rng in zip(examples, example_rng.generators, strict=True)
    ]
    batch: UnmaskedSpeechText = {
        "sound": processor.sound([examples[n]["sound"] for n in sounds] or [silence(num_mel_bins)]),
        "text": processor.text([captions[n] for n in text] or [""]),
        "paired": torch.tensor(len(pairs)),
        "pairs": torch.arange(len(speech), len(sounds)) if pairs else torch.zeros(1, dtype=torch.long),
        "transcript": processor.text([captions[n] for n in pairs] or [""]),
    }
    return batch, SpeechTextRows(sounds, text, pairs)
