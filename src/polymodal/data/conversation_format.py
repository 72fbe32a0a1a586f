"""How images and what is said of them become sequences of a language model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polymodal.data.columns.captions import CaptionsColumn
from polymodal.data.columns.column import Column, reject_unknown_columns
from polymodal.data.columns.tiled_image import TiledImageColumn
from polymodal.data.conversation import (
    ASSISTANT,
    DOCUMENT,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    MESSAGES,
    SPECIAL_TOKENS,
    USER,
    Turn,
)
from polymodal.data.sequence import TEXT, PackedSequences, Span, pack, pad_sequences
from polymodal.data.sequence import SpanSequence as Segments
from polymodal.errors import UserError
from polymodal.modalities.conversation import ASSISTANT as ASSISTANT_ROLE
from polymodal.modalities.conversation import USER as USER_ROLE
from polymodal.modalities.conversation import Message
from polymodal.modalities.text import bos_eos, encode_without_special_tokens
from polymodal.types import Batch

TAKEN = ("answer", IMAGE, "question", "begun", DOCUMENT, MESSAGES, "text")


class ConversationFormat:
    """Sequences of marks, images, questions and answers, in the words of the column `text`."""

    def __init__(self, context: int, columns: Mapping[str, Column]):
        """context: the most tokens of a sequence. columns: the fitted ones."""
        image, text = columns[IMAGE], columns["text"]
        assert isinstance(image, TiledImageColumn)
        assert isinstance(text, CaptionsColumn)
        self.context = context
        self.image = image
        self.tokenizer = text.tokenizer
        self.start, self.end = bos_eos(self.tokenizer)
        self.marks = {mark: self.tokenizer.mark_ids(mark) for mark in SPECIAL_TOKENS}

    def __call__(self, **columns: list[Any]) -> Batch:
        """For `generate_text`: prompts of images, questions, or both, one a row; `begun` is how the answer begins.

        With `answer`, whole sequences in whose answers the loss is asked for; answers alone are texts. `document` alone
        gives `sequences` of texts and images in any order, `messages` alone those of conversations, `text` alone
        prompts of texts that an image follows.
        """
        reject_unknown_columns(columns, TAKEN)
        if DOCUMENT in columns:
            return {"sequences": pad_sequences([self.document(self._opened(parts)) for parts in columns[DOCUMENT]])}
        if MESSAGES in columns:
            return {"sequences": pad_sequences([self.dialogue(messages) for messages in columns[MESSAGES]])}
        if "text" in columns:
            return {"prompts": pad_sequences([self._before_image(text) for text in columns["text"]], pad_left=True)}
        count = len(next(iter(columns.values())))
        nothing: list[Any] = [None] * count
        images = self.image(columns[IMAGE]) if IMAGE in columns else nothing
        questions = columns.get("question", [""] * count)
        if "answer" in columns:
            said = [
                self.sequence(image, [Turn(answer, question)])
                for image, question, answer in zip(images, questions, columns["answer"], strict=True)
            ]
            return {"sequences": pad_sequences(said)}
        begun = columns.get("begun", [""] * count)
        asked = [self.prompt(*one) for one in zip(images, questions, begun, strict=True)]
        return {"prompts": pad_sequences(asked, pad_left=True)}

    def prompt(self, image: np.ndarray | None, question: str, begun: str = "") -> Segments:
        """Start mark, the image between marks, the question, and how the answer begins; the model goes on.

        A long question is cut.
        """
        opening = self._opening(image, None)
        asked = opening + self._ask(question, self.context - 1 - sum(map(len, opening)))
        room = self.context - 1 - sum(map(len, asked))
        return [*asked, _text(encode_without_special_tokens(self.tokenizer, [begun])[0][:room])] if begun else asked

    def sequence(self, image: np.ndarray | None, said: Sequence[Turn], max_tiles: int | None = None) -> Segments:
        """An image and what is said of it, in turn; what does not fit the context any more is left out or cut.

        The loss is asked for in the answers and their end marks.
        """
        segments = self._opening(image, max_tiles)
        for number, (answer, question) in enumerate(said):
            answered = [*encode_without_special_tokens(self.tokenizer, [answer])[0], self.end]
            left = self.context - sum(map(len, segments))
            if number and left < len(answered) + len(question):  # a character is at most a token
                break
            segments += self._ask(question, left - min(len(answered), left // 2))
            segments.append(_text(answered[: self.context - sum(map(len, segments))], predicted=True))
        return segments

    def document(self, parts: Sequence[str | np.ndarray]) -> Segments:
        """Texts and images in this order between start and end mark; the loss asks for all of them.

        What does not fit the context any more is left out, of a text its end. Raises UserError for an image that never
        fits.
        """
        segments, room = [_text([self.start])], self.context - 2
        for part in parts:
            if isinstance(part, str):
                piece = [_text(encode_without_special_tokens(self.tokenizer, [part])[0][:room], predicted=True)]
            else:
                cells = Span(IMAGE, self.image.patchify_tiles(part, None))
                self.check_fits(len(cells))
                piece = [_text(self.marks[IMAGE_START], True), cells, _text(self.marks[IMAGE_END], True)]
            length = sum(map(len, piece))
            if length > room:
                break
            segments, room = segments + piece, room - length
        return [*segments, _text([self.end], predicted=True)]

    def dialogue(self, messages: Sequence[Message], max_tiles: int | None = None) -> Segments:
        """Return all turns in order with images at their places; the loss is asked for in every answer and end mark.

        Images that begin the first question stand in front of it, as in a prompt. A system prompt stands between start
        mark and first question. Where an answer does not fit the context any more, it is left out with all that
        follows; the first question is cut.
        """
        cells = iter(self._cells(messages, max_tiles))
        segments = [_text([self.start])]
        question: Segments = []
        answers = 0
        for number, message in enumerate(messages):
            parts = [self._part(part, cells, message.role == ASSISTANT_ROLE) for part in message.parts]
            if message.role != ASSISTANT_ROLE:
                question += self._asked(
                    parts, message.role, first=not any(m.role == USER_ROLE for m in messages[:number])
                )
                continue
            mark = [_text(self.marks[ASSISTANT])] if question else []
            answered = [*itertools.chain.from_iterable(parts), _text([self.end], predicted=True)]
            left = self.context - _length(segments)
            if answers and left < _length([*question, *mark, *answered]):
                break
            question = _cut_texts(question, left - _length(mark) - min(_length(answered), left // 2))
            segments += [*question, *mark, *_cut_texts(answered, left - _length(question) - _length(mark))]
            question, answers = [], answers + 1
        return segments

    def _asked(self, parts: Sequence[Segments], role: str, first: bool) -> Segments:
        """Return a question behind its mark, before which the images that begin the first one stand."""
        spans = list(itertools.chain.from_iterable(parts))
        if role != USER_ROLE:
            return spans
        images = list(itertools.takewhile(lambda part: len(part) > 1, parts)) if first else []
        leading = sum(map(len, images))
        return [*spans[:leading], _text(self.marks[USER]), *spans[leading:]]

    def _part(self, part: Any, cells: Iterator[Any], predicted: bool) -> Segments:
        """Return the tokens of a text, or those of an image between its marks."""
        if isinstance(part, str):
            return [_text(encode_without_special_tokens(self.tokenizer, [part])[0], predicted)]
        image = Span(IMAGE, next(cells), predicted=False)
        return [_text(self.marks[IMAGE_START]), image, _text(self.marks[IMAGE_END])]

    def _cells(self, messages: Sequence[Message], max_tiles: int | None) -> list[Any]:
        """Return the tokens of all images, which divide the tiles of one; a tile each where the context is short."""
        images = [part for message in messages for part in message.parts if not isinstance(part, str)]
        if not images:
            return []
        limit = self.image.max_tiles if max_tiles is None else max_tiles
        cells = [self.image.patchify_tiles(image, max(1, limit // len(images))) for image in images]
        if sum(map(len, cells)) > self.context // 2:
            cells = [self.image.patchify_tiles(image, 1) for image in images]
        return cells

    def check_fits(self, tokens: int) -> None:
        """Raise UserError where an image of so many tokens leaves no room for a text."""
        if tokens + 16 > self.context:
            raise UserError(
                f"An image of {tokens} tokens leaves no room in a context of {self.context}; make images smaller or "
                "the context of the language model longer."
            )

    def pack(self, sequences: Sequence[Segments]) -> PackedSequences:
        """As many as fit share a row of the model's context."""
        return pack(sequences, self.context)

    def _opened(self, parts: Sequence[Any]) -> list[str | np.ndarray]:
        return [part if isinstance(part, str) else self.image.open(part) for part in parts]

    def _before_image(self, text: str) -> Segments:
        self.check_fits(self.image.tokens_per_tile)
        room = self.context - self.image.tokens_per_tile - 4
        ids = encode_without_special_tokens(self.tokenizer, [text])[0][:room]
        return [_text([self.start, *ids, *self.marks[IMAGE_START]])]

    def _opening(self, image: np.ndarray | None, max_tiles: int | None) -> Segments:
        if image is None:
            return [_text([self.start])]
        cells = self.image.patchify_tiles(image, max_tiles)
        self.check_fits(len(cells))
        before, after = [self.start, *self.marks[IMAGE_START]], self.marks[IMAGE_END]
        return [_text(before), Span(IMAGE, cells, predicted=False), _text(after)]

    def _ask(self, question: str, room: int) -> Segments:
        """The question between its marks, in at most so many places; nothing for none."""
        if not question:
            return []
        asked = [*self.marks[USER], *encode_without_special_tokens(self.tokenizer, [question])[0]]
        return [_text([*asked[: room - len(self.marks[ASSISTANT])], *self.marks[ASSISTANT]])]


def _length(segments: Segments) -> int:
    return sum(map(len, segments))


def _cut_texts(segments: Segments, length: int) -> Segments:
    """Return the spans with as many tokens of texts, from the front, as leave room for all images."""
    room = length - sum(len(span) for span in segments if span.modality != TEXT)
    kept = []
    for span in segments:
        if span.modality == TEXT:
            span = dataclasses.replace(span, values=span.values[: max(room, 0)])
            room -= len(span)
        kept.append(span)
    return kept


def _text(ids: list[int], predicted: bool = False) -> Span:
    return Span(TEXT, torch.tensor(ids, dtype=torch.long), predicted)
