"""Retrieval between images and captions of Flickr30k: 1000 test images with five captions each."""

from __future__ import annotations

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.benchmarks import coco_retrieval

benchmark = Benchmark(
    title="Flickr30k retrieval",
    source="arXiv:1412.2306; github.com/LAION-AI/CLIP_benchmark",
    data="the captions of the 1000 test images of Karpathy's split",
    task=coco_retrieval.task,
)
