"""Retrieval between images and their captions by the protocol of COCO and Flickr30k (Karpathy and Fei-Fei 2015).

Image to text: whether any of an image's captions is among the first k. Text to image: whether the caption's own image
is. An equal caption of another image is wrong, unlike in the task `cross_modal_retrieval`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
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
        captions = SplitCaptions.of(inputs, split)
        items = inputs.item_vectors(split).vectors[torch.from_numpy(captions.items)]
        vectors = embed(inputs.method, inputs.processor, text=captions.texts)["text"]
        scores += caption_recalls(split, inputs.item, items, vectors, captions.owner)
    return scores


@dataclass(frozen=True)
class SplitCaptions:
    """The captions of a split that are compared. Rows with the same stored item, such as a file, are one item.

    items: numbers of examples, the first of each item. owner: which of the items a text belongs to.
    """

    items: Int[np.ndarray, " items"]
    texts: list[str]
    owner: Int[np.ndarray, " texts"]

    @classmethod
    def of(cls, inputs: TaskInputs, split: str) -> SplitCaptions:
        """The first captions of each item in the main language. Raises UserError when there are none."""
        language = main_language(inputs.corpus)
        read = inputs.item_vectors(split)
        captions: dict[bytes, list[str]] = {}
        firsts = []
        for number, (row, example) in enumerate(zip(read.rows.tolist(), read.examples, strict=True)):
            stored = repr(inputs.corpus.raw(row, inputs.item_column)).encode()
            key = hashlib.sha256(stored).digest()
            if key not in captions:
                captions[key] = []
                firsts.append(number)
            captions[key] += [one.text for one in example["text"] if language in (None, one.language)]
        kept = [of_item[:CAPTIONS] for of_item in captions.values()]
        if not any(kept):
            raise UserError(f"The split '{split}' has no caption in the language '{language}'.")
        owner = np.repeat(np.arange(len(kept)), [len(of_item) for of_item in kept])
        return cls(np.array(firsts), [text for of_item in kept for text in of_item], owner)


def caption_retrieval_protocol(inputs: TaskInputs) -> Mapping[str, Any]:
    """What the recalls depend on."""
    captions = {split: SplitCaptions.of(inputs, split) for split in inputs.test_splits}
    return {
        "k": list(RECALLS),
        "max_captions_per_image": CAPTIONS,
        "images": {split: len(one.items) for split, one in captions.items()},
        "captions_per_image": {split: len(one.texts) / len(one.items) for split, one in captions.items()},
        "image_to_text": "a hit if any of the image's captions is among the first k",
        "text_to_image": "a hit if the caption's own image is among the first k",
        "ties": "count as ranked before",
        "chance": "a random order",
    }
