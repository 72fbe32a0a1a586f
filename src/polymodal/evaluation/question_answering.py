"""Questions about images or clips: the fraction answered exactly, of all and by kind, and what the image adds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.instructions import chain_of_thought_prompt, final_answer
from polymodal.data.loader import Reader
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.classification import predicted_classes
from polymodal.evaluation.panels import NEUTRAL, Line, verdict_color
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.modalities import Questions
from polymodal.modalities.question import Question
from polymodal.training.run import answers
from polymodal.types import Example

BATCH = 32
METRICS = {
    "accuracy": MetricKind(),
    "*_gain": MetricKind(),
    "gain_over_direct": MetricKind(),
    "no_answer_rate": MetricKind(higher_is_better=False),
}


def question_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, most: int | None = None, item: str = "image"
) -> list[Score]:
    """The share of questions that are answered exactly, of all and by kind; a question of each kind an example.

    The unit is an example with all of its questions.
    Letters' case does not count. Guessing gives each kind its commonest answer in training. What the image brings is
    the share of right answers beside it, less that beside another example's image. Questions whose working is known
    are asked once more, with it, of a method that writes. item: what is asked about, such as `video`.
    """
    _, examples = reader.read_split(split, most)
    rng = np.random.default_rng(0)
    by_example = [_one_of_each_kind(example["questions"], rng) for example in examples]
    asked = [(example, one) for example, own in zip(examples, by_example, strict=True) for one in own]
    unit = np.repeat(np.arange(len(examples)), [len(own) for own in by_example])
    other = {id(one): next_one for one, next_one in zip(examples, [*examples[1:], examples[0]], strict=True)}
    right, blind = (
        _same_each(_answered(method, processor, item, shown, [question.question for _, question in asked]), asked)
        for shown in ([example[item] for example, _ in asked], [other[id(one)][item] for one, _ in asked])
    )
    usual = most_frequent_answers(reader.corpus)
    lucky = [_same(usual.get(question.kind, ""), question.answer) for _, question in asked]
    places: dict[str, list[int]] = defaultdict(list)
    for place, (_, question) in enumerate(asked):
        places[question.kind].append(place)
    scores = [
        Score.per_cluster(f"{split}/vqa/accuracy", right, unit, float(np.mean(lucky))),
        Score.per_cluster(f"{split}/vqa/{item}_gain", right - blind, unit, 0.0),
    ]
    for kind, own in sorted(places.items()):
        units, guessed = right[own], np.array(lucky, float)[own]
        scores.append(Score(f"{split}/vqa/{kind}/accuracy", units, float(guessed.mean())))
    known = [place for place, (_, question) in enumerate(asked) if question.rationale]
    if known and isinstance(method, CanGenerateText):
        chance = float(np.array(lucky, float)[known].mean())
        some = [asked[place] for place in known]
        scores += _chain_of_thought_scores(method, processor, split, some, unit[known], right[known], chance)
    return scores


def _chain_of_thought_scores(
    method: nn.Module,
    processor: Any,
    split: str,
    asked: list[tuple[Example, Question]],
    unit: np.ndarray,
    direct: Float[np.ndarray, " questions"],
    chance: float,
) -> list[Score]:
    """The share of right final answers of workings, less that of answers without, and that of workings without any.

    unit: the number of each question's example. direct: whether each question is answered rightly without a working.
    """
    prompts = [chain_of_thought_prompt(question.question) for _, question in asked]
    finals = [
        final_answer(text) for text in written_texts(method, processor, [one["image"] for one, _ in asked], prompts)
    ]
    right = _same_each([final or "" for final in finals], asked)
    without = np.array([final is None for final in finals], dtype=float)
    return [
        Score.per_cluster(f"{split}/cot/accuracy", right, unit, chance),
        Score.per_cluster(f"{split}/cot/gain_over_direct", right - direct, unit, 0.0),
        Score.per_cluster(f"{split}/cot/no_answer_rate", without, unit, higher_is_better=False),
    ]


def _answered(method: nn.Module, processor: Any, item: str, shown: list[Any], questions: list[str]) -> list[str]:
    """What is written, or the likeliest of the answers that are known."""
    if not isinstance(method, CanClassifyAnswers):
        return written_texts(method, processor, shown, questions)
    logits = answers(method, processor, "answer_logits", {item: shown, "question": questions}, BATCH)
    likely = predicted_classes(torch.cat(logits).numpy()).tolist()
    return [processor.answers[number] if number >= 0 else "" for number in likely]


def written_texts(method: nn.Module, processor: Any, images: list[Any], questions: list[str]) -> list[str]:
    columns = {"image": images, "question": questions}
    rows = [row for part in answers(method, processor, "generate_text", columns, BATCH) for row in part]
    return processor.texts(rows)


def _same_each(texts: list[str], asked: list[tuple[Example, Question]]) -> Float[np.ndarray, " questions"]:
    pairs = zip(texts, asked, strict=True)
    return np.array([_same(text, question.answer) for text, (_, question) in pairs], dtype=float)


def question_lines(
    method: nn.Module, processor: Any, examples: Sequence[Example], item: str, most: int = 3
) -> list[list[Line]]:
    """For a plot, some questions of each example with the method's answers: green if correct, else the reference."""
    asked = [(place, one) for place, example in enumerate(examples) for one in example["questions"][:most]]
    shown = [examples[place][item] for place, _ in asked]
    given = _answered(method, processor, item, shown, [one.question for _, one in asked])
    lines: list[list[Line]] = [[] for _ in examples]
    for (place, one), text in zip(asked, given, strict=True):
        right = _same(text, one.answer)
        lines[place].append((f"Q: {one.question}", NEUTRAL))
        lines[place].append((f"A: {text}{'' if right else f' (reference: {one.answer})'}", verdict_color(right)))
    return lines


def most_frequent_answers(corpus: Corpus, most: int = 4000) -> dict[str, str]:
    """Kind of question -> its commonest answer in training."""
    column = corpus.column_with(Questions)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for stored in corpus.raw_values(corpus.sample("train", most), column):
        for question in corpus.columns[column].decode(stored):
            counts[question.kind][question.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def _one_of_each_kind(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    return [own[int(rng.integers(len(own)))] for own in by_kind.values()]


def _same(one: str, other: str) -> bool:
    return one.strip().lower() == other.strip().lower()
