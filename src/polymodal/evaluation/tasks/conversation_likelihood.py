"""Likelihood of the assistant's answers in conversations, and what the images add to it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.conversation import MESSAGES
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.data.sequence import PackedSequences
from polymodal.errors import UnreadableExample
from polymodal.evaluation.byte_likelihood import MAX_TEXTS, unigram_bits
from polymodal.evaluation.capabilities import HasLikelihood
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Conversations
from polymodal.modalities.conversation import ASSISTANT, messages_of, without_images
from polymodal.training.run import answers

BATCH = 32


def answer_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Bits per byte of all answers of a conversation that fit the context, and the reduction by its images.

    The unit is a conversation. Chance: bytes as frequent as in answers of the training split. Of images: the
    conversation without them, where it has any.
    """
    _, examples = reader.read_split(split, MAX_TEXTS)
    conversations = [example[MESSAGES] for example in examples]
    texts = [text for messages in conversations for text in _answers(processor, messages)]
    size = np.array([max(len(text.encode()), 1) for text in texts], dtype=float)
    bits = _bits(method, processor, conversations) / size
    training = _training_answers(reader.corpus)
    scores = [
        Score(
            f"{split}/answers/bits_per_byte", bits, unigram_bits(training, texts), higher_is_better=False, weights=size
        )
    ]
    seeing = [n for n, one in enumerate(conversations) if any(not isinstance(p, str) for m in one for p in m.parts)]
    if seeing:
        blind = _bits(method, processor, [without_images(conversations[n]) for n in seeing])
        length = np.array(
            [len("".join(_answers(processor, without_images(conversations[n]))).encode()) for n in seeing]
        )
        gain = blind / np.maximum(length, 1) - bits[seeing]
        scores.append(Score(f"{split}/answers/image_gain", gain, 0.0, weights=size[seeing]))
    return scores


def _bits(method: nn.Module, processor: Processor, conversations: list[Any]) -> np.ndarray:
    parts = answers(method, processor, "log_likelihood", {MESSAGES: conversations}, BATCH)
    return -torch.cat(parts).numpy() / np.log(2)


def _answers(processor: Processor, messages: Any) -> list[str]:
    """Return one text: the answers that are predicted, as far as the conversation fits the context."""
    sequences: PackedSequences = processor(**{MESSAGES: [messages]})["sequences"]
    return processor.texts([sequences.ids[0][sequences.predicted[0]].tolist()])


def _training_answers(corpus: Corpus) -> list[str]:
    if "train" not in corpus.splits:
        return []
    stored = corpus.raw_values(corpus.sample("train", MAX_TEXTS), corpus.column_with(Conversations))
    texts: list[str] = []
    for one in stored:
        with contextlib.suppress(UnreadableExample):
            records = one["messages"] if one is not None else ()
            texts += [m.text for record in records for m in messages_of(record) if m.role == ASSISTANT]
    return texts


task = Task(
    capability=HasLikelihood,
    requires=((Conversations,),),
    order=142,
    score=lambda inputs: inputs.over_test_splits(answer_scores),
    validate=lambda inputs: answer_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    metrics={
        "answers/bits_per_byte": MetricKind("bits per byte", higher_is_better=False),
        "answers/image_gain": MetricKind("bits per byte"),
    },
    headline=("answers/bits_per_byte", "answers/image_gain"),
    forward_methods=("log_likelihood",),
)
