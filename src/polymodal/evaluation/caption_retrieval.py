"""Retrieval between images and their captions by the protocol of COCO and Flickr30k (Karpathy and Fei-Fei 2015).

Image to text: whether any of an image's captions is among the first k. Text to image: whether the caption's own image
is. An equal caption of another image is wrong, unlike in the task `cross_modal_retrieval`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polymodal.errors import UserError
from polymodal.evaluation.embeddings import main_language
from polymodal.evaluation.retrieval import RECALLS, chance_recall, ranks
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.task import TaskInputs
from polymodal.training.run import embed

CAPTIONS = 5


def caption_recalls(
    name: str,
    item: str,
    items: Float[Tensor, "items dim"],
    captions: Float[Tensor, "captions dim"],
    owner: Int[np.ndarray, " captions"],
) -> list[Score]:
    """R@1, R@5 and R@10 in both directions. owner: the number of each caption's item.

    Every query weighs alike; the unit of the intervals is an item with its captions.
    """
    every = np.unique(owner)
    places = [np.flatnonzero(owner == number) for number in every]
    queries = {
        f"{name}/{item}_to_text": (
            ranks(items[torch.from_numpy(every)], captions, places),
            places,
            len(captions),
            every,
        ),
        f"{name}/text_to_{item}": (
            ranks(captions, items, list(owner[:, None])),
            list(owner[:, None]),
            len(items),
            owner,
        ),
    }
    scores = []
    for direction, (best_ranks, relevant, candidates, unit) in queries.items():
        counts = np.array([len(right) for right in relevant])
        for k in RECALLS:
            chance = chance_recall(counts, candidates, k)
            scores.append(Score.per_cluster(f"{direction}/R@{k}", (best_ranks <= k).astype(float), unit, chance))
    return scores


def caption_retrieval_scores(inputs: TaskInputs) -> list[Score]:
    """The recalls of every test split, with the first five captions of each item."""
    assert inputs.item is not None
    scores = []
    for split in inputs.test_splits:
        items = inputs.item_vectors(split)
        texts, owner = _captions(inputs, split)
        vectors = embed(inputs.method, inputs.processor, text=texts)["text"]
        scores += caption_recalls(split, inputs.item, items.vectors, vectors, owner)
    return scores


def _captions(inputs: TaskInputs, split: str) -> tuple[list[str], np.ndarray]:
    """The first captions of each item in the main language, and the number of each one's item."""
    language = main_language(inputs.corpus)
    texts, owner = [], []
    for number, example in enumerate(inputs.item_vectors(split).examples):
        of_item = [caption.text for caption in example["text"] if language in (None, caption.language)][:CAPTIONS]
        texts += of_item
        owner += [number] * len(of_item)
    if not texts:
        raise UserError(f"The split '{split}' has no caption in the language '{language}'.")
    return texts, np.array(owner, dtype=np.int64)


def caption_retrieval_protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    """What the recalls depend on."""
    counts = {split: np.bincount(_captions(inputs, split)[1]) for split in inputs.test_splits}
    return {
        "k": list(RECALLS),
        "max_captions_per_image": CAPTIONS,
        "captions_per_image": {split: float(np.mean(of_split)) for split, of_split in counts.items()},
        "image_to_text": "a hit if any of the image's captions is among the first k",
        "text_to_image": "a hit if the caption's own image is among the first k",
        "ties": "count as ranked before",
        "chance": "a random order",
    }
