"""How well is speech written down, and does a head that learned it from speech read text, too?"""

from __future__ import annotations

from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from torch import nn

from polymodal.data.loader import Reader
from polymodal.evaluation.statistics import Score
from polymodal.training.run import answers

BATCH = 64


def transcription_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, most: int | None = None
) -> list[Score]:
    """Error rates of characters and words, of all texts together, in lower case as the method's own characters.

    `texts_as_speech`: those of the text itself through the head for speech, which is low where both share a space. An
    empty answer has 100 %, and more is possible. most: examples that are listened to.
    """
    _, examples = reader.read_split(split, most)
    texts = [example["text"][0].text for example in examples]
    wanted = processor.tokenizer.decode(processor.tokenizer(texts))
    asked = {"transcripts": {"sound": [e["sound"] for e in examples]}, "texts_as_speech": {"text": texts}}
    said = {
        name: processor.texts(
            [row for part in answers(method, processor, "transcribe", columns, BATCH) for row in part]
        )
        for name, columns in asked.items()
    }
    by_words = error_rate(f"{split}/transcripts/word_error_rate", _words(said["transcripts"]), _words(wanted))
    by_characters = [error_rate(f"{split}/{name}/character_error_rate", one, wanted) for name, one in said.items()]
    return [*by_characters, by_words]


def error_rate(name: str, said: list[Any], wanted: list[Any]) -> Score:
    """Edits (Levenshtein) that make what was said into what was wanted, by its length. Sequences of anything."""
    edits = np.array([Levenshtein.distance(one, other) for one, other in zip(said, wanted, strict=True)], dtype=float)
    lengths = np.array([max(len(one), 1) for one in wanted], dtype=float)
    return Score(name, edits / lengths, higher_is_better=False, weights=lengths)


def _words(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]
