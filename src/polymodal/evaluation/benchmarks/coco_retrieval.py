"""Retrieval between images and captions of COCO with five captions an image (Karpathy and Fei-Fei 2015)."""

from __future__ import annotations

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.caption_retrieval import caption_retrieval_protocol, caption_retrieval_scores
from polymodal.evaluation.retrieval import METRICS
from polymodal.evaluation.task import Task
from polymodal.modalities import Image, Text

task = Task(
    capability=CanEmbed,
    requires=((Image, Text),),
    order=0,
    score=caption_retrieval_scores,
    metrics=METRICS,
    headline=(
        *("image_to_text/R@1", "image_to_text/R@5", "image_to_text/R@10"),
        *("text_to_image/R@1", "text_to_image/R@5", "text_to_image/R@10"),
    ),
    forward_methods=("embed",),
    protocol=caption_retrieval_protocol,
)
benchmark = Benchmark(
    title="COCO retrieval",
    source="arXiv:1412.2306; github.com/LAION-AI/CLIP_benchmark",
    data="captions_val2014.json or the 5000 test images of Karpathy's split",
    task=task,
)
