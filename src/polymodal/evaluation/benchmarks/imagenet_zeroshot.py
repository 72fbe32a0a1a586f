"""Zero-shot classification of ImageNet with CLIP's 80 prompt templates and class names (Radford et al. 2021)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polymodal.evaluation.benchmark import Benchmark
from polymodal.evaluation.prompt_templates import IMAGENET, imagenet_templates
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import zero_shot_classification
from polymodal.evaluation.zero_shot import zero_shot_protocol
from polymodal.modalities import Category, Image


@functools.cache
def class_names() -> dict[str, str]:
    """Return CLIP's name of each of the 1000 classes, by WordNet id (such as n01440764) in the usual order."""
    lines = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def with_templates(inputs: TaskInputs) -> TaskInputs:
    """The inputs with CLIP's templates, unless the user gave some, and its names of classes."""
    return replace(inputs, templates=inputs.templates or imagenet_templates(), class_names=class_names())


def _scores(inputs: TaskInputs) -> list[Score]:
    return zero_shot_classification.label_scores(with_templates(inputs))


def _protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    label = inputs.corpus.label
    assert label is not None
    modality = inputs.corpus.columns[label]
    assert isinstance(modality, Category)
    by_id = sum(name in class_names() for name in modality.names)
    return {
        **zero_shot_protocol(with_templates(inputs)),
        "templates": list(inputs.templates) or IMAGENET,
        "class_names": "CLIP's, by WordNet id" if by_id else "as in the data",
    }


benchmark = Benchmark(
    title="ImageNet zero-shot classification",
    source="arXiv:2103.00020, section 3.1.4; github.com/openai/CLIP",
    data="the folder of the validation images, with a folder a class (n01440764 ... or names)",
    task=replace(
        zero_shot_classification.task,
        requires=((Image,),),
        score=_scores,
        protocol=_protocol,
        headline=("zero_shot_*/top-1", "zero_shot_*/top-5", "zero_shot_*/accuracy"),
    ),
)
