"""VQA v2: accuracy against ten answers with the official normalization (Goyal et al. 2017)."""

from __future__ import annotations

from functools import partial

from polymodal.evaluation.answer_accuracy import VQA_ACCURACY, vqa_accuracy
from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.capabilities import CanClassifyAnswers, CanGenerateText
from polymodal.evaluation.question_benchmark import answer_protocol, answer_scores
from polymodal.evaluation.statistics import MetricKind
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Questions

task = Task(
    capability=CanGenerateText | CanClassifyAnswers,
    requires=((Image, Questions),),
    order=0,
    score=partial(answer_scores, "accuracy", vqa_accuracy),
    metrics={"accuracy": MetricKind()},
    headline=("vqa/accuracy", "vqa/yes or no/accuracy", "vqa/number/accuracy", "vqa/other/accuracy"),
    forward_methods=("generate_text", "answer_logits"),
    protocol=partial(answer_protocol, VQA_ACCURACY),
)
benchmark = Benchmark(
    title="VQA v2",
    source="arXiv:1612.00837; github.com/GT-Vision-Lab/VQA",
    data="the official questions with their annotations of ten answers",
    task=task,
)
