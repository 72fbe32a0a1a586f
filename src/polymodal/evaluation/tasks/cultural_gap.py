"""Zero-shot recognition of the concepts of a culture by their names, in total and by category, and the cultural gap.

The corpus has a column `concept` and a column `culture`, whose value `general` stands for concepts of no culture. The
gap is the accuracy over general concepts minus that over cultural ones, among equally many classes with equal prompts.
Beside names, concepts are recognized by the mean vector of their training images (prototypes): where this is far above
zero-shot accuracy, it is the name that the method lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.data.loader import Reader
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.classification import prompt_ensemble
from polymodal.evaluation.cultural_gap import GENERAL, KS, concept_score, gap_score, top_k_among
from polymodal.evaluation.embeddings import ItemVectors
from polymodal.evaluation.prompt_templates import prompts_of
from polymodal.evaluation.retrieval import ranks
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import ITEMS, Task, TaskInputs
from polymodal.modalities import Category
from polymodal.training.run import embed

CONCEPT, CULTURE, CATEGORY = "concept", "culture", "category"
NAME_ALONE = "{}"


def concepts_of(inputs: TaskInputs, general: bool) -> list[str]:
    """Return the names of all general concepts of the corpus, or of all others, in order."""
    table = inputs.corpus.table.select([CONCEPT, CULTURE])
    pairs = zip(*(table.column(name).to_pylist() for name in (CONCEPT, CULTURE)), strict=True)
    return sorted({concept for concept, culture in pairs if concept and culture and (culture == GENERAL) is general})


class Recognized(NamedTuple):
    """Items of concepts of a list. places: of the items. ranks: of the right concept. classes: number of concepts."""

    places: np.ndarray
    concepts: np.ndarray
    ranks: np.ndarray
    classes: int

    @classmethod
    def of(cls, items: ItemVectors, of_item: Sequence[str], names: Sequence[str], vectors: Tensor) -> Recognized:
        number = {name: place for place, name in enumerate(names)}
        places = np.array([place for place, name in enumerate(of_item) if name in number], dtype=np.int64)
        concepts = np.array([number[of_item[place]] for place in places], dtype=np.int64)
        best = ranks(items.vectors[torch.from_numpy(places)], vectors, [np.array([one]) for one in concepts])
        return cls(places, concepts, np.asarray(best), len(names))

    def score(self, name: str, k: int, chosen: int | None = None, among: np.ndarray | None = None) -> Score:
        """Return top-k accuracy, among a choice of classes, or of all; among: which of the items count."""
        count = self.classes if chosen is None else chosen
        hits = top_k_among(self.ranks, self.classes, count, k)
        which = slice(None) if among is None else among
        return concept_score(f"{name}/top-{k}", hits[which], self.concepts[which], min(k / count, 1.0))


def cultural_scores(inputs: TaskInputs) -> list[Score]:
    """Top-1 and top-5 of cultural concepts, by category, of prototypes, of general concepts, and the gap."""
    lists = {general: concepts_of(inputs, general) for general in (False, True)}
    chosen = min(len(lists[False]), len(lists[True]) or len(lists[False]))
    vectors = {general: _name_vectors(inputs, names) for general, names in lists.items() if names}
    prototypes, scores = _prototypes(inputs, lists[False]), list[Score]()
    for split in inputs.test_splits:
        items = inputs.item_vectors(split)
        of_item = inputs.corpus.raw_values(items.rows, CONCEPT)
        cultural = Recognized.of(items, of_item, lists[False], vectors[False])
        if not len(cultural.places):
            continue
        scores += [cultural.score(f"{split}/zero_shot_culture", k) for k in KS]
        scores += _by_category(inputs, f"{split}/zero_shot_culture", items, cultural)
        if len(prototypes) > 1:
            means = torch.stack([*prototypes.values()])
            by_image = Recognized.of(items, of_item, [*prototypes], means)
            if len(by_image.places):
                scores += [by_image.score(f"{split}/culture_prototypes", k) for k in KS]
        if lists[True]:
            general = Recognized.of(items, of_item, lists[True], vectors[True])
            for k in KS if len(general.places) else ():
                both = [one.score(f"{split}/zero_shot_general", k, chosen) for one in (general, cultural)]
                scores += [both[0], gap_score(f"{split}/cultural_gap/top-{k}", *both)]
    return scores


def _name_vectors(inputs: TaskInputs, names: Sequence[str]) -> Float[Tensor, "concepts dim"]:
    prompts = [prompts_of(inputs.class_names.get(name, name), inputs.templates or (NAME_ALONE,)) for name in names]
    texts = [text for of_concept in prompts for text in of_concept]
    vectors = embed(inputs.method, inputs.processor, text=texts)["text"]
    return prompt_ensemble(vectors.split([len(of_concept) for of_concept in prompts]))


def _by_category(inputs: TaskInputs, name: str, items: ItemVectors, cultural: Recognized) -> list[Score]:
    if not isinstance(inputs.corpus.columns.get(CATEGORY), Category):
        return []
    values = np.array(inputs.corpus.raw_values(items.rows[cultural.places], CATEGORY), dtype=object)
    categories = sorted({value for value in values if value is not None})
    parts = [(category, values == category) for category in categories] if len(categories) > 1 else []
    return [cultural.score(f"{name}/{category}", k, among=among) for category, among in parts for k in KS]


def _prototypes(inputs: TaskInputs, names: Sequence[str]) -> dict[str, Float[Tensor, " dim"]]:
    """Return the normalized mean vector of the training items of each concept that has some."""
    corpus, wanted = inputs.corpus, {*names}
    rows = corpus.splits.get("train", np.zeros(0, dtype=np.int64))
    of_row = corpus.raw_values(rows, CONCEPT) if len(rows) else []
    some = rows[np.array([name in wanted for name in of_row], dtype=bool)]
    if not len(some):
        return {}
    assert inputs.item is not None
    reader = Reader(corpus.with_splits({**corpus.splits, "train": some}), inputs.reader.processor)
    items = ItemVectors.of(inputs.method, inputs.processor, reader, "train", inputs.item)
    of_item = np.array(corpus.raw_values(items.rows, CONCEPT), dtype=object)
    places = {name: torch.from_numpy(np.flatnonzero(of_item == name)) for name in names}
    return {name: prompt_ensemble([items.vectors[of]])[0] for name, of in places.items() if len(of)}


def has_cultures(inputs: TaskInputs) -> bool:
    """Whether the corpus has concepts of cultures, two at least, and the method takes texts."""
    kinds = [inputs.corpus.columns.get(name) for name in (CONCEPT, CULTURE)]
    takes_text = "text" in getattr(inputs.processor, "columns", ("text",))
    return takes_text and all(isinstance(kind, Category) for kind in kinds) and len(concepts_of(inputs, False)) > 1


def cultural_protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    """Return what the scores depend on."""
    counts = [len(concepts_of(inputs, general)) for general in (False, True)]
    return {
        "templates": list(inputs.templates) or [NAME_ALONE],
        "cultural_concepts": counts[0],
        "classes_of_the_gap": min(counts[0], counts[1]) or None,
        "averaged_over": "concepts (macro-average)",
        "top_k": list(KS),
    }


task = Task(
    capability=CanEmbed,
    requires=tuple((modality,) for modality in ITEMS.values()),
    condition=has_cultures,
    order=13,
    score=cultural_scores,
    metrics={
        "cultural_gap/top-*": MetricKind(higher_is_better=False, is_fraction=False),
        "top-*": MetricKind(),
    },
    headline=("zero_shot_culture/top-1", "zero_shot_culture/top-5", "cultural_gap/top-1"),
    forward_methods=("embed",),
    protocol=cultural_protocol,
    hint="evaluate RUN --template 'a photo of {}.'",
)
