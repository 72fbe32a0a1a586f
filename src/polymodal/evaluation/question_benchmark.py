"""All questions of a split with the accuracy of a published benchmark, overall and by type of answer or question."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polymodal.errors import UserError
from polymodal.evaluation.question_answering import answered
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import TaskInputs
from polymodal.modalities import Questions
from polymodal.modalities.question import Question

AnswerAccuracy = Callable[[str, Sequence[str]], float]


def answer_scores(metric: str, accuracy: AnswerAccuracy, inputs: TaskInputs) -> list[Score]:
    """Score every question of every test split; the unit is an image with its questions.

    metric: the name of the score. accuracy: of an answer, given its references. Chance: always giving the most frequent
    reference answer of the split, as the prior of VQA does.
    """
    return [score for split in inputs.test_splits for score in _split_scores(metric, accuracy, inputs, split)]


def _split_scores(metric: str, accuracy: AnswerAccuracy, inputs: TaskInputs, split: str) -> list[Score]:
    item = inputs.item
    assert item is not None
    _, examples = inputs.reader.read_split(split)
    pairs = [(number, one) for number, example in enumerate(examples) for one in example.get("questions", ())]
    if not pairs:
        raise UserError(f"The split '{split}' of '{inputs.corpus.name}' has no question with an answer.")
    unit = np.array([number for number, _ in pairs])
    questions = [one for _, one in pairs]
    shown = [examples[number][item] for number in unit.tolist()]
    texts = answered(inputs.method, inputs.processor, item, shown, [one.question for one in questions])
    right = np.array([accuracy(text, one.references) for text, one in zip(texts, questions, strict=True)])
    usual = majority_reference(questions)
    by_chance = np.array([accuracy(usual, one.references) for one in questions])
    scores = [Score.per_cluster(f"{split}/vqa/{metric}", right, unit, float(by_chance.mean()))]
    places: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(questions):
        places[one.kind].append(place)
    for kind, of_kind in sorted(places.items()) if len(places) > 1 else ():
        name = f"{split}/vqa/{kind.replace('/', ' or ') or 'other'}/{metric}"
        scores.append(Score.per_cluster(name, right[of_kind], unit[of_kind], float(by_chance[of_kind].mean())))
    return scores


def majority_reference(questions: Sequence[Question]) -> str:
    """The answer that most questions have as their most frequent reference."""
    counts = Counter(Counter(one.references).most_common(1)[0][0] for one in questions)
    return counts.most_common(1)[0][0]


def answer_protocol(accuracy: str, inputs: TaskInputs) -> Mapping[str, Any]:
    """What the scores depend on. accuracy: in words."""
    column = inputs.corpus.column_with(Questions)
    counts: Counter[int] = Counter()
    for split in inputs.test_splits:
        for stored in inputs.corpus.raw_values(inputs.corpus.sample(split, 1000), column):
            counts.update(len(one.references) for one in inputs.corpus.columns[column].decode(stored or []))
    return {
        "accuracy": accuracy,
        "prompt": "the question",
        "references_per_question": sorted(counts),
        "chance": "the most frequent reference answer of the split",
    }
