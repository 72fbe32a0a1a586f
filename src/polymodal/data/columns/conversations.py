"""Conversations of several turns about any number of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.errors import UnreadableExample
from polymodal.modalities import Conversations
from polymodal.modalities.conversation import Message

MIN_TEXT = 16  # tokens beside the images of a conversation
MARKS = 4  # tokens at most around an image


@dataclass(frozen=True)
class ConversationsColumn(Column):
    """Messages whose parts are texts and images. image: the column that resizes the images.

    context: maximum number of tokens of a conversation; those whose images do not fit are unreadable.
    """

    reads = (Conversations,)

    image: TiledImageColumn
    context: int

    def load(self, corpus: Corpus, row: int) -> list[Message]:
        messages = corpus.value(row, corpus.column_with(Conversations))
        images = sum(not isinstance(part, str) for message in messages for part in message.parts)
        tokens = images * (self.image.tokens_per_tile + MARKS) + MIN_TEXT
        if images and tokens > self.context:
            raise UnreadableExample(f"its {images} images do not fit the context of {self.context} tokens")
        return [
            Message(role, tuple(part if isinstance(part, str) else self.image.open(part) for part in parts))
            for role, parts in messages
        ]

    def __call__(self, conversations: list[Any]) -> list[Any]:
        return conversations
