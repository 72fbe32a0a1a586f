"""Retrieval of point clouds by single images of them."""

from __future__ import annotations

import numpy as np
from torch import nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.retrieval import METRICS, ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import Task
from polymodal.modalities import Images, Points
from polymodal.training.run import embed


def view_to_points(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Retrieval of the cloud that each single image shows. The unit is a thing with all of its images."""
    _, examples = reader.read_split(split)
    views = [view for example in examples for view in example["views"]]
    owner = np.repeat(np.arange(len(examples)), [len(example["views"]) for example in examples])
    vectors = embed(method, processor, image=views, points=[example["points"] for example in examples])
    relevant = list(owner[:, None])
    found = ranks(vectors["image"], vectors["points"], relevant)
    return retrieval_scores(f"{split}/image_to_points", found, relevant, len(examples), owner)


task = Task(
    capability=CanEmbed,
    requires=((Points, Images),),
    order=60,
    score=lambda inputs: inputs.over_test_splits(view_to_points),
    metrics=METRICS,
    headline=("*/R@10", "*/R@1", "*/MRR"),
    forward_methods=("embed",),
)
