"""Questions about images or clips: the fraction answered rightly, of all and by kind, and what the image adds.

An answer is right when it is the text of a reference; the ten references of VQA v2 give VQA accuracy.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.instructions import chain_of_thought_prompt, final_answer, normalized_answer
from polymodal.data.loader import Reader
from polymodal.errors import UnreadableExample
from polymodal.evaluation.answer_accuracy import VQA_ACCURACY, VQA_ANSWERS, vqa_accuracy
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
    "*_gain": MetricKind(is_fraction=False),
    "gain_over_direct": MetricKind(is_fraction=False),
    "no_answer_rate": MetricKind(higher_is_better=False),
}


def question_scores(
    method: nn.Module, processor: Any, reader: Reader, split: str, max_examples: int | None = None, item: str = "image"
) -> list[Score]:
    """Accuracy of questions, overall and by kind; one question of each kind per example.

    The unit is an example with all of its questions. Chance: the most frequent training answer of each kind. The
    gain of the image is the accuracy minus that with the image of another example. Questions with a rationale are asked
    again with a chain-of-thought prompt, if the method generates text. item: the column that questions are about, such
    as `video`. Examples without questions are left out.
    """
    _, every = reader.read_split(split, max_examples)
    examples = [example for example in every if example.get("questions")]
    if not examples:
        return []
    rng = np.random.default_rng(0)
    by_example = [_one_of_each_kind(example["questions"], rng) for example in examples]
    pairs = [(example, one) for example, of_example in zip(examples, by_example, strict=True) for one in of_example]
    unit = np.repeat(np.arange(len(examples)), [len(of_example) for of_example in by_example])
    other = {id(one): next_one for one, next_one in zip(examples, [*examples[1:], examples[0]], strict=True)}
    right, blind = (
        _accuracy_of_each(answered(method, processor, item, shown, [question.question for _, question in pairs]), pairs)
        for shown in ([example[item] for example, _ in pairs], [other[id(one)][item] for one, _ in pairs])
    )
    usual = most_frequent_answers(reader.corpus, split="train" if len(reader.corpus.splits.get("train", ())) else split)
    by_chance = [question_accuracy(usual.get(question.kind, ""), question) for _, question in pairs]
    places: dict[str, list[int]] = defaultdict(list)
    for place, (_, question) in enumerate(pairs):
        places[question.kind].append(place)
    scores = [
        Score.per_cluster(f"{split}/vqa/accuracy", right, unit, float(np.mean(by_chance))),
        Score.per_cluster(f"{split}/vqa/{item}_gain", right - blind, unit, 0.0),
    ]
    for kind, of_example in sorted(places.items()):
        units, guessed = right[of_example], np.array(by_chance, float)[of_example]
        scores.append(Score(f"{split}/vqa/{kind}/accuracy", units, float(guessed.mean())))
    with_rationale = [place for place, (_, question) in enumerate(pairs) if question.rationale]
    if with_rationale and isinstance(method, CanGenerateText):
        chance = float(np.array(by_chance, float)[with_rationale].mean())
        some = [pairs[place] for place in with_rationale]
        scores += _chain_of_thought_scores(
            method, processor, split, some, unit[with_rationale], right[with_rationale], chance
        )
    return scores


def _chain_of_thought_scores(
    method: nn.Module,
    processor: Any,
    split: str,
    questions: list[tuple[Example, Question]],
    unit: np.ndarray,
    direct: Float[np.ndarray, " questions"],
    chance: float,
) -> list[Score]:
    """Accuracy of final answers after a chain of thought, its gain over direct answers, and the rate without an answer.

    unit: the number of each question's example. direct: whether each question is answered correctly without it.
    """
    prompts = [chain_of_thought_prompt(question.question) for _, question in questions]
    finals = [
        final_answer(text) for text in written_texts(method, processor, [one["image"] for one, _ in questions], prompts)
    ]
    right = _accuracy_of_each([final or "" for final in finals], questions)
    without = np.array([final is None for final in finals], dtype=float)
    return [
        Score.per_cluster(f"{split}/cot/accuracy", right, unit, chance),
        Score.per_cluster(f"{split}/cot/gain_over_direct", right - direct, unit, 0.0),
        Score.per_cluster(f"{split}/cot/no_answer_rate", without, unit, higher_is_better=False),
    ]


def answered(method: nn.Module, processor: Any, item: str, shown: list[Any], questions: list[str]) -> list[str]:
    """The generated answers, or the most probable ones of a classifier."""
    if not isinstance(method, CanClassifyAnswers):
        return written_texts(method, processor, shown, questions)
    logits = answers(method, processor, "answer_logits", {item: shown, "question": questions}, BATCH)
    likely = predicted_classes(torch.cat(logits).numpy()).tolist()
    return [processor.answers[number] if number >= 0 else "" for number in likely]


def written_texts(method: nn.Module, processor: Any, images: list[Any], questions: list[str]) -> list[str]:
    columns = {"image": images, "question": questions}
    rows = [row for part in answers(method, processor, "generate_text", columns, BATCH) for row in part]
    return processor.texts(rows)


def _accuracy_of_each(texts: list[str], questions: list[tuple[Example, Question]]) -> Float[np.ndarray, " questions"]:
    pairs = zip(texts, questions, strict=True)
    return np.array([question_accuracy(text, question) for text, (_, question) in pairs], dtype=float)


def question_lines(
    method: nn.Module, processor: Any, examples: Sequence[Example], item: str, max_questions: int = 3
) -> list[list[Line]]:
    """For a plot, some questions of each example with the method's answers: green if correct, else the reference."""
    pairs = [
        (place, one) for place, example in enumerate(examples) for one in example.get("questions", ())[:max_questions]
    ]
    shown = [examples[place][item] for place, _ in pairs]
    given = answered(method, processor, item, shown, [one.question for _, one in pairs]) if pairs else []
    lines: list[list[Line]] = [[] for _ in examples]
    for (place, one), text in zip(pairs, given, strict=True):
        right = question_accuracy(text, one) > 0
        lines[place].append((f"Q: {one.question}", NEUTRAL))
        lines[place].append((f"A: {text}{'' if right else f' (reference: {one.answer})'}", verdict_color(right)))
    return lines


def most_frequent_answers(corpus: Corpus, max_examples: int = 4000, split: str = "train") -> dict[str, str]:
    """Kind of question -> its most frequent answer in a split."""
    column = corpus.column_with(Questions)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for stored in corpus.raw_values(corpus.sample(split, max_examples), column):
        with contextlib.suppress(UnreadableExample):
            for question in corpus.columns[column].decode(stored) if stored is not None else ():
                counts[question.kind][question.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def _one_of_each_kind(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    return [of_kind[int(rng.integers(len(of_kind)))] for of_kind in by_kind.values()]


def question_accuracy(text: str, question: Question) -> float:
    """VQA accuracy for the ten answers of VQA v2; else whether the text is one of the references, but for case and
    full stops."""
    if len(question.references) >= VQA_ANSWERS:
        return vqa_accuracy(text, question.references)
    return float(any(_same(text, reference) for reference in question.references))


def _same(one: str, other: str) -> bool:
    return normalized_answer(one) == normalized_answer(other)


def question_protocol(inputs: Any) -> dict[str, Any]:
    """What the scores of questions depend on. inputs: TaskInputs."""
    return {
        "prompt": "the question",
        "questions": "one of each kind per example",
        "references": "exact match with any of them, ignoring case and full stops around the answer",
        "ten_references": VQA_ACCURACY,
        "chance": "the most frequent training answer of each kind, or test answer without a training split",
    }
