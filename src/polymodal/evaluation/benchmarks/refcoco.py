"""RefCOCO, RefCOCO+ and RefCOCOg: the fraction of boxes with an IoU of at least 0.5 with the reference."""

from __future__ import annotations

from dataclasses import replace

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.tasks import referring

benchmark = Benchmark(
    title="RefCOCO referring expressions",
    source="arXiv:1608.00272; github.com/lichengunc/refer",
    data="referring expressions with one box each",
    splits=("val", "validation", "testA", "testB", "test", "test_b"),
    task=replace(
        referring.task,
        headline=("referring/*/acc@0.5", "*/referring/*/acc@0.5", "referring/*/mean_IoU", "*/referring/*/mean_IoU"),
        protocol=lambda inputs: {
            "accuracy": "IoU of the box with the highest score >= 0.5",
            "expressions": "those for one object",
            "chance": "one of the boxes that expressions of the image refer to",
        },
    ),
)
