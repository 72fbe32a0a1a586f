"""What a model writes and how likely it finds what people wrote: questions, captions, and texts by themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from polymodal.corpora import Corpus
from polymodal.corpora.mixture import Mixture
from polymodal.data.conversation import DESCRIBE
from polymodal.data.instructions import longest_caption
from polymodal.data.loader import Reader
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Questions
from polymodal.modalities.question import Question
from polymodal.training.run import answers
from polymodal.types import Processor

MOST_TEXTS = 1000
BATCH = 32


def question_scores(
    method: nn.Module, processor: Processor, reader: Reader, split: str, most: int | None = None
) -> list[Score]:
    """The share of questions that are answered exactly, of all and by kind; a question of each kind an example.

    Letters' case does not count. Guessing gives each kind its commonest answer in training. What the picture brings is
    the share of right answers beside it, less that beside another example's picture.
    """
    _, examples = reader.read_split(split, most)
    rng = np.random.default_rng(0)
    asked = [(example, question) for example in examples for question in _one_of_each_kind(example["questions"], rng)]
    other = {id(one): next_one for one, next_one in zip(examples, [*examples[1:], examples[0]], strict=True)}
    right, blind = (
        _right(method, processor, shown, [question for _, question in asked])
        for shown in ([example["image"] for example, _ in asked], [other[id(one)]["image"] for one, _ in asked])
    )
    usual = commonest_answers(reader.corpus)
    lucky = [_same(usual.get(question.kind, ""), question.answer) for _, question in asked]
    places: dict[str, list[int]] = defaultdict(list)
    for place, (_, question) in enumerate(asked):
        places[question.kind].append(place)
    scores = [
        Score(f"{split}/questions/accuracy", right, float(np.mean(lucky))),
        Score(f"{split}/questions/gain_by_picture", right - blind, 0.0),
    ]
    for kind, own in sorted(places.items()):
        units, guessed = right[own], np.array(lucky, float)[own]
        scores.append(Score(f"{split}/questions/{kind}/accuracy", units, float(guessed.mean())))
    return scores


def _right(
    method: nn.Module, processor: Any, pictures: list[Any], questions: list[Question]
) -> Float[np.ndarray, " questions"]:
    columns = {"image": pictures, "question": [question.question for question in questions]}
    rows = [row for part in answers(method, processor, "write", columns, BATCH) for row in part]
    found = zip(processor.texts(rows), questions, strict=True)
    return np.array([_same(text, question.answer) for text, question in found], dtype=float)


def commonest_answers(corpus: Corpus, most: int = 4000) -> dict[str, str]:
    """Kind of question -> its commonest answer in training."""
    column = corpus.column_of(Questions)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for stored in corpus.raw_values(corpus.sample("train", most), column):
        for question in corpus.columns[column].decode(stored):
            counts[question.kind][question.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def caption_scores(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Bits a byte that the longest caption of each picture takes when it is asked for, and how many of them the picture
    saves, compared with that of another example.
    """
    _, examples = reader.read_split(split, MOST_TEXTS)
    texts = [longest_caption(example) for example in examples]
    pictures = [example["image"] for example in examples]
    own, others = (
        bits_a_byte(f"{split}/captions/bits_a_byte", method, processor, texts, shown)
        for shown in (pictures, [*pictures[1:], pictures[0]])
    )
    saved = Score(f"{split}/captions/bits_saved_by_picture", others.units - own.units, 0.0, weights=own.weights)
    return [own, saved]


def text_scores(method: nn.Module, processor: Processor, corpus: Corpus, split: str) -> list[Score]:
    """Bits a byte that a text by itself takes, the first of each example; 8 tell nothing.

    Of a mixture, each part by itself.
    """
    scores = []
    for part in corpus.corpora if isinstance(corpus, Mixture) else (corpus,):
        _, examples = Reader(part, processor).read_split(split, MOST_TEXTS)
        texts = [example["text"][0].text for example in examples]
        scores.append(bits_a_byte(f"{split}/texts_of_{part.name}/bits_a_byte", method, processor, texts))
    return scores


def bits_a_byte(
    name: str, method: nn.Module, processor: Processor, texts: list[str], pictures: Sequence[Any] | None = None
) -> Score:
    """-log2 p of each text by its length in UTF-8, which compares models of any vocabulary; long texts weigh more."""
    columns = {"answer": texts}
    if pictures is not None:
        columns |= {"image": list(pictures), "question": [DESCRIBE] * len(texts)}
    found = torch.cat(answers(method, processor, "log_likelihood", columns, BATCH)).numpy()
    size = np.array([len(text.encode()) for text in texts], dtype=float)
    return Score(name, -found / np.log(2) / size, 8.0, higher_is_better=False, weights=size)


def _one_of_each_kind(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    return [own[int(rng.integers(len(own)))] for own in by_kind.values()]


def _same(one: str, other: str) -> bool:
    return one.strip().lower() == other.strip().lower()
