"""How well a model of documents predicts their words, and whether it sees which paragraph belongs to an image.

Documents with marks and without, with images in one place or another, are compared by the words that a reader sees in
both: their bits count, and those of marks do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import IMAGE, IMAGE_END, IMAGE_START
from polymodal.data.processor import Processor
from polymodal.data.sequence import TEXT, Span, pad_sequences
from polymodal.evaluation.byte_likelihood import unigram_bits
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.tasks.token_likelihood import CanScoreTokens
from polymodal.modalities import Interleaved
from polymodal.modalities.document import Segment as Piece
from polymodal.modalities.text import TextTokenizer
from polymodal.training.run import evaluating, to_device

BATCH = 16
ImagePlacement = Callable[[str, str], list[bool]]
"""From a text with marks and the same without to which characters of the first are words."""


class ParagraphChoice(NamedTuple):
    """Which of a document's texts stands beside an image. image, right: places among its images and its texts."""

    key: str
    image: int
    right: int


def image_paragraph_choice(corpus: Corpus, split: str) -> list[ParagraphChoice]:
    """For every image of documents with several texts; right is the text after it, else the one before.

    corpus: one whose images stand in their place.
    """
    choices = []
    for row in corpus.rows(split).tolist():
        is_text = [piece["figure"] is None for piece in corpus.raw(row, corpus.column_with(Interleaved))]
        texts = sum(is_text)
        images = [place for place, text in enumerate(is_text) if not text] if texts > 1 else []
        for number, place in enumerate(images):
            right = min(sum(is_text[:place]), texts - 1)
            choices.append(ParagraphChoice(corpus.key(row), number, right))
    return choices


def document_reading_scores(
    method: nn.Module,
    processor: Processor,
    corpus: Corpus,
    plain: Mapping[str, Sequence[str]],
    shown: ImagePlacement,
    questions: Sequence[ParagraphChoice],
    split: str,
) -> list[Score]:
    """Bits for a byte of what is read, of the words alone and with their marks, and how often the right text is chosen.

    plain: by key, the texts of a document as a reader sees them. The unit is a page, of whose parts the keys differ
    after a #. A text is chosen by how much likelier the image makes it.
    Chance of bits: bytes as frequent as in the training split.
    """
    column = corpus.column_with(Interleaved)
    every = {corpus.key(row): row for row in corpus.rows(split).tolist()}
    documents = {key: corpus.value(row, column) for key, row in every.items() if plain[key]}
    whole = [_whole(processor, pieces, plain[key], shown) for key, pieces in documents.items()]
    words, marks = (_nats(method, processor, whole, kind) for kind in ("words", "marks"))
    pages = _pages(list(documents))
    size = np.bincount(pages, [sum(len(text.encode()) for text in plain[key]) for key in documents])
    train = (corpus.key(row) for row in corpus.rows("train").tolist()) if "train" in corpus.splits else ()
    chance = unigram_bits(
        [text for key in train for text in plain.get(key, ())], [text for key in documents for text in plain[key]]
    )
    scores = []
    for name, nats in (("words", words), ("words_and_marks", words + marks)):
        units = np.bincount(pages, nats) / math.log(2) / size
        scores.append(
            Score(
                f"{split}/{name}/bits_per_byte",
                units,
                chance,
                higher_is_better=False,
                weights=size,
                unit="bits per byte",
            )
        )
    if questions:
        scores.append(_chosen(method, processor, documents, questions, f"{split}/image_paragraph_choice/accuracy"))
    return scores


class TypedSpan(NamedTuple):
    """A piece of a sequence. kind: words, marks, or image, which is read and not predicted."""

    kind: str
    modality: str
    values: Tensor


def _chosen(
    method: nn.Module,
    processor: Processor,
    documents: Mapping[str, list[Piece]],
    questions: Sequence[ParagraphChoice],
    name: str,
) -> Score:
    sequences: list[list[TypedSpan]] = []
    counts: list[int] = []
    for question in questions:
        pieces = documents[question.key]
        image = _image(processor, [piece for piece in pieces if piece.figure is not None][question.image])
        texts = [_text(processor, piece.text, [True] * len(piece.text)) for piece in pieces if piece.figure is None]
        sequences += [[*before, *text] for before in ([], image) for text in texts]
        counts.append(len(texts))
    nats = np.split(_nats(method, processor, sequences, "words"), np.cumsum([2 * count for count in counts])[:-1])
    right = [
        float(predicted_classes((values[:count] - values[count:])[None])[0] == question.right)
        for values, count, question in zip(nats, counts, questions, strict=True)
    ]
    chance = float(np.mean([1 / count for count in counts]))
    return Score.per_cluster(name, np.array(right), _pages([question.key for question in questions]), chance)


def _pages(keys: Sequence[str]) -> np.ndarray:
    """A number for the page of each key."""
    return np.unique([key.partition("#")[0] for key in keys], return_inverse=True)[1]


def _whole(
    processor: Processor, pieces: Sequence[Piece], plain: Sequence[str], shown: ImagePlacement
) -> list[TypedSpan]:
    """A document as it is learned: texts that follow each other are one, line by line."""
    spans: list[TypedSpan] = []
    rest = iter(plain)
    text, words = "", list[bool]()
    for piece in pieces:
        if piece.figure is not None:
            spans += _text(processor, text, words) + _image(processor, piece)
            text, words = "", []
            continue
        if text:
            text, words = f"{text}\n", [*words, False]
        text, words = text + piece.text, words + shown(piece.text, next(rest))
    return spans + _text(processor, text, words)


def _text(processor: Processor, text: str, words: Sequence[bool]) -> list[TypedSpan]:
    """The tokens of a text; one is words where any of its characters is."""
    assert isinstance(processor.tokenizer, TextTokenizer)
    numbers, places = processor.tokenizer.pieces(text)
    kinds = ["words" if any(words[place]) else "marks" for place in places]
    ends = [end for end in range(1, len(kinds) + 1) if end == len(kinds) or kinds[end] != kinds[end - 1]]
    return [
        TypedSpan(kinds[begin], TEXT, torch.tensor(numbers[begin:end]))
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


def _image(processor: Processor, piece: Piece) -> list[TypedSpan]:
    assert piece.figure is not None
    cells = processor.image.patchify_tiles(processor.image.open(piece.figure), None)
    before, after = (torch.tensor(processor.conversation.marks[mark]) for mark in (IMAGE_START, IMAGE_END))
    return [TypedSpan("picture", TEXT, before), TypedSpan("picture", IMAGE, cells), TypedSpan("picture", TEXT, after)]


def _nats(method: nn.Module, processor: Processor, documents: Sequence[Sequence[TypedSpan]], kind: str) -> np.ndarray:
    """-log p of what is of this kind in every document."""
    assert isinstance(method, CanScoreTokens)
    device = next(method.parameters()).device
    start = Span(TEXT, torch.tensor([processor.conversation.start]), predicted=False)
    order = sorted(range(len(documents)), key=lambda number: sum(len(one.values) for one in documents[number]))
    nats = np.zeros(len(documents))
    with evaluating(method), torch.no_grad():
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            sequences = [
                [start, *(Span(one.modality, one.values, one.kind == kind) for one in documents[number])]
                for number in some
            ]
            by_modality = method.token_nll(to_device({"sequences": pad_sequences(sequences)}, device))
            nats[some] = by_modality[TEXT][0].cpu().numpy()
    return nats
