"""Retrieval of point clouds by single images of them."""

from __future__ import annotations

import numpy as np
from torch import nn

from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.panels import (
    EXAMPLES,
    MAX_CANDIDATES,
    Panels,
    image_panel,
    retrieval_panels,
    shown_images,
    value_panel,
)
from polymodal.evaluation.retrieval import METRICS, ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Images, Points
from polymodal.training.run import embed


def view_to_points(method: nn.Module, processor: Processor, reader: Reader, split: str) -> list[Score]:
    """Retrieval of the cloud that each single image shows. The unit is a thing with all of its images."""
    _, examples = reader.read_split(split)
    views = [view for example in examples for view in example["views"]]
    owner = np.repeat(np.arange(len(examples)), [len(example["views"]) for example in examples])
    vectors = embed(method, processor, image=views, points=[example["points"] for example in examples])
    relevant = list(owner[:, None])
    best_ranks = ranks(vectors["image"], vectors["points"], relevant)
    return retrieval_scores(f"{split}/image_to_points", best_ranks, relevant, len(examples), owner)


def plot(inputs: TaskInputs) -> Panels:
    """Images with the most similar point clouds."""
    rows, examples = inputs.test_examples(MAX_CANDIDATES)
    chosen = np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).round().astype(int).tolist()
    views = [examples[number]["views"][0] for number in chosen]
    points = [example["points"] for example in examples]
    vectors = embed(inputs.method, inputs.processor, image=views, points=points)
    column = inputs.corpus.column_with(Points)
    return retrieval_panels(
        [image_panel(view, "query") for view in shown_images(views)],
        vectors["image"] @ vectors["points"].T,
        [np.array([number]) for number in chosen],
        lambda number, title, right: value_panel(inputs.corpus, int(rows[number]), column, title, right),
        f"Retrieval of point clouds among {len(rows)} test examples; green: relevant",
    )


task = Task(
    capability=CanEmbed,
    requires=((Points, Images),),
    order=60,
    score=lambda inputs: inputs.over_test_splits(view_to_points),
    plot=plot,
    metrics=METRICS,
    headline=("*/R@10", "*/R@1", "*/MRR"),
    forward_methods=("embed",),
)
