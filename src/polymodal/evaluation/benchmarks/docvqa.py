"""DocVQA: questions about pages, with ANLS (Mathew et al. 2021)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from polymodal.evaluation.answer_accuracy import anls
from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.benchmarks import vqav2
from polymodal.evaluation.question_benchmark import answer_protocol, answer_scores
from polymodal.evaluation.statistics import MetricKind

benchmark = Benchmark(
    title="DocVQA",
    source="arXiv:2007.00398; rrc.cvc.uab.es/?ch=17",
    data="the official questions with their answers and page images",
    task=replace(
        vqav2.task,
        score=partial(answer_scores, "ANLS", anls),
        metrics={"ANLS": MetricKind()},
        headline=("vqa/ANLS",),
        protocol=partial(answer_protocol, "ANLS: largest Levenshtein similarity to a reference, 0 below 0.5"),
    ),
)
