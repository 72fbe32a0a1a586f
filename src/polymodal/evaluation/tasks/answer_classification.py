"""Questions about images or clips (VQA) as a classification over the answers of the training set."""

from __future__ import annotations

from polymodal.evaluation.capabilities import CanClassifyAnswers
from polymodal.evaluation.panels import EXAMPLES, Panels, text_panel, value_panel
from polymodal.evaluation.question_answering import METRICS, question_lines, question_protocol, question_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs, has_names
from polymodal.modalities import Questions


def _scores(inputs: TaskInputs) -> list[Score]:
    return inputs.over_test_splits(question_scores, None, inputs.item)


def plot(inputs: TaskInputs) -> Panels:
    """Examples with questions, the most probable answer, and the reference where that is wrong."""
    assert inputs.item is not None
    rows, examples = inputs.test_examples(EXAMPLES)
    lines = question_lines(inputs.method, inputs.processor, examples, inputs.item)
    panels = [
        [value_panel(inputs.corpus, row, inputs.item_column), text_panel(of_example)]
        for row, of_example in zip(rows.tolist(), lines, strict=True)
    ]
    return Panels(panels, "Answers to questions; green: correct", (1.5, 3.5))


task = Task(
    capability=CanClassifyAnswers,
    requires=tuple((Questions, modality) for modality in ITEMS.values()),
    condition=lambda inputs: has_names(inputs.processor, "answers"),
    order=30,
    score=_scores,
    plot=plot,
    metrics=METRICS,
    headline=("vqa/accuracy", "vqa/*_gain"),
    protocol=question_protocol,
    forward_methods=("answer_logits",),
    hint="ask RUN IMAGE --question QUESTION",
)
