"""Captions of COCO: BLEU and CIDEr-D as the official evaluation code computes them (Chen et al. 2015)."""

from __future__ import annotations

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.capabilities import CanGenerateText
from polymodal.evaluation.caption_benchmark import caption_benchmark_protocol, caption_benchmark_scores
from polymodal.evaluation.statistics import MetricKind
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Text

benchmark = Benchmark(
    title="COCO captions",
    source="arXiv:1504.00325; github.com/salaniz/pycocoevalcap",
    data="captions_val2014.json or the 5000 test images of Karpathy's split",
    task=Task(
        capability=CanGenerateText,
        requires=((Image, Text),),
        order=0,
        score=caption_benchmark_scores,
        metrics={"BLEU-*": MetricKind(), "CIDEr": MetricKind("CIDEr", is_fraction=False)},
        headline=("captions/CIDEr", "captions/BLEU-4", "captions/BLEU-3", "captions/BLEU-2", "captions/BLEU-1"),
        forward_methods=("generate_text",),
        protocol=caption_benchmark_protocol,
    ),
)
