"""Vectors of the classes of a label, from prompts: the user's templates, the corpus's prompts, or CLIP's templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.evaluation.classification import prompt_ensemble
from polymodal.evaluation.embeddings import ItemVectors
from polymodal.evaluation.prompt_templates import CORPUS, IMAGENET, imagenet_templates, prompts_of
from polymodal.evaluation.task import TaskInputs
from polymodal.modalities import Category
from polymodal.training.run import embed


def has_prompts(inputs: TaskInputs) -> bool:
    """Whether there are prompts for the classes: of the user, of the corpus, or CLIP's for images of the user's own."""
    if inputs.templates or inputs.corpus.prompts:
        return True
    built_in = inputs.corpus.choices.keys() & {"corpus", "parts"}
    return inputs.item == "image" and not built_in


def class_prompts(inputs: TaskInputs, label: str) -> dict[str, tuple[str, ...]]:
    """The prompts of each class. Templates take its name in `class_names`, or its own with spaces instead of _."""
    modality = inputs.corpus.columns[label]
    assert isinstance(modality, Category)
    if not inputs.templates and inputs.corpus.prompts:
        return {name: tuple(inputs.corpus.prompts[name]) for name in modality.names}
    templates = inputs.templates or imagenet_templates()
    names = {name: inputs.class_names.get(name, name.replace("_", " ")) for name in modality.names}
    return {name: prompts_of(shown, templates) for name, shown in names.items()}


def class_vectors(inputs: TaskInputs, label: str) -> tuple[tuple[str, ...], Float[Tensor, "classes dim"]]:
    """The classes of a label, and the normalized mean of the normalized vectors of each one's prompts."""
    prompts = class_prompts(inputs, label)
    texts = [text for of_class in prompts.values() for text in of_class]
    vectors = embed(inputs.method, inputs.processor, text=texts)["text"]
    return tuple(prompts), prompt_ensemble(vectors.split([len(of_class) for of_class in prompts.values()]))


def zero_shot_protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    """What zero-shot scores depend on."""
    label, corpus = inputs.corpus.label, inputs.corpus
    assert label is not None
    if not has_prompts(inputs):
        return {}
    given = list(inputs.templates)
    prompts = class_prompts(inputs, label)
    return {
        "templates": given or (CORPUS if corpus.prompts else IMAGENET),
        "prompts_per_class": max(map(len, prompts.values())),
        "classes": len(prompts),
        "class_embedding": "normalized mean of normalized prompt embeddings",
        "accuracy": "mean over classes of the fraction that is right (mean per-class accuracy)",
        "top_k": [1, 5] if len(prompts) > 5 else [1],
    }


def labelled(corpus: Corpus, label: str, items: ItemVectors) -> tuple[Float[Tensor, "labelled dim"], np.ndarray]:
    """The vectors of the items that have a label, and the class of each."""
    places = np.flatnonzero(corpus.has(label)[items.rows])
    return items.vectors[places], np.array([corpus.value(row, label) for row in items.rows[places]], dtype=np.int64)
