"""Packed batches of conversations: about images, as a recipe puts them, or of texts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polymodal.data.conversation import MESSAGES, Turn
from polymodal.data.instructions import text_turns
from polymodal.data.processor import Processor
from polymodal.data.sequence import SequenceBatch
from polymodal.modalities.conversation import without_images
from polymodal.rng import ExampleRNG
from polymodal.types import Example


def image_conversations(
    examples: Sequence[Example],
    processor: Processor,
    turns: Mapping[int, tuple[Any, list[Turn]]],
    max_tiles: Sequence[int],
) -> SequenceBatch:
    """Pack one conversation of each example: its own messages, or the image and the turns that are given for it.

    turns: by the number of the example. max_tiles: of the images of each example.
    """
    form = processor.conversation
    rows = [
        form.sequence(*turns[number], tiles) if number in turns else form.dialogue(example[MESSAGES], tiles)
        for number, (example, tiles) in enumerate(zip(examples, max_tiles, strict=True))
    ]
    return {"sequences": form.pack(rows)}


def text_conversations(
    examples: Sequence[Example], processor: Processor, max_turns: int, cot_fraction: float, example_rng: ExampleRNG
) -> SequenceBatch:
    """Pack texts without images: messages, or captions and questions of each example (`text_turns`)."""
    form = processor.conversation
    rows = [
        form.dialogue(without_images(example[MESSAGES]))
        if MESSAGES in example
        else form.sequence(None, text_turns(example, rng, max_turns, cot_fraction))
        for example, rng in zip(examples, example_rng.generators, strict=True)
    ]
    return {"sequences": form.pack(rows)}
