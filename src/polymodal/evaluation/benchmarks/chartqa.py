"""ChartQA: questions about charts, with relaxed accuracy (Masry et al. 2022)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from polymodal.evaluation.answer_accuracy import relaxed_accuracy
from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.benchmarks import vqav2
from polymodal.evaluation.question_benchmark import answer_protocol, answer_scores
from polymodal.evaluation.statistics import MetricKind

benchmark = Benchmark(
    title="ChartQA",
    source="arXiv:2203.10244, section 5.1",
    data="questions with answers and chart images",
    task=replace(
        vqav2.task,
        score=partial(answer_scores, "relaxed_accuracy", relaxed_accuracy),
        metrics={"relaxed_accuracy": MetricKind()},
        headline=("vqa/relaxed_accuracy", "vqa/human/relaxed_accuracy", "vqa/augmented/relaxed_accuracy"),
        protocol=partial(answer_protocol, "relaxed accuracy: numbers within 5 %, other answers the same in any case"),
    ),
)
