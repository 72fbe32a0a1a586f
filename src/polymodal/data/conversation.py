"""Special tokens, turns and columns of conversations about images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polymodal.data.columns.captions import CaptionsColumn
from polymodal.data.columns.column import Column
from polymodal.data.columns.conversations import ConversationsColumn
from polymodal.data.columns.interleaved import InterleavedColumn
from polymodal.data.columns.preferences import PreferencesColumn
from polymodal.data.columns.questions import QuestionsColumn
from polymodal.data.columns.regions import RegionsColumn
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.processor import Sparse
from polymodal.modalities.text import Tokenizer

IMAGE, DOCUMENT, MESSAGES = "image", "document", "messages"
DESCRIBE = "Describe the picture."
SPECIAL_TOKENS = IMAGE_START, IMAGE_END, USER, ASSISTANT = "<image>", "</image>", "<user>", "<assistant>"


@dataclass(frozen=True)
class MarkedTokenizer:
    """The tokenizer of a language model, learned with the special tokens of conversations.

    source: a configuration with `tokenizer(texts, special_tokens)` and `load_tokenizer(directory)`.
    """

    source: Any

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        return self.source.tokenizer(texts, SPECIAL_TOKENS)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        return self.source.load_tokenizer(directory)


def conversation_columns(image: TiledImageColumn, source: Any) -> dict[str, Sparse]:
    """Return the columns of a vision-language model; rows may lack any of them. source: see `MarkedTokenizer`."""
    columns: dict[str, Column] = {
        IMAGE: image,
        "text": CaptionsColumn(MarkedTokenizer(source)),
        DOCUMENT: InterleavedColumn(image),
        MESSAGES: ConversationsColumn(image, source.context_length),
        "questions": QuestionsColumn(),
        "regions": RegionsColumn(),
        "preferences": PreferencesColumn(),
    }
    return {name: Sparse(column) for name, column in columns.items()}


class Turn(NamedTuple):
    """A question, empty for a caption or a text, and the answer that the model learns."""

    answer: str
    question: str = ""
