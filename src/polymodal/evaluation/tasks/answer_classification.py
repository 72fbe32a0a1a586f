"""Questions about images or clips, to a method that chooses among the answers of its training."""

from __future__ import annotations

from polymodal.evaluation.capabilities import CanClassifyAnswers
from polymodal.evaluation.question_answering import METRICS, question_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs, has_names
from polymodal.modalities import Questions


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(question_scores, None, inputs.item)


task = Task(
    capability=CanClassifyAnswers,
    requires=tuple((Questions, modality) for modality in ITEMS.values()),
    condition=lambda inputs: has_names(inputs.processor, "answers"),
    order=30,
    score=_scores,
    metrics=METRICS,
    headline=("vqa/accuracy", "vqa/*_gain"),
    forward_methods=("answer_logits",),
    hint="ask RUN IMAGE --question QUESTION",
)
