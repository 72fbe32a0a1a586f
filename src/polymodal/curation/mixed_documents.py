"""Interleaved documents whose true pairs are known: captions of related images, shuffled among other sentences.

Pipelines that pair images with texts are measured on them, as the true text of each image is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class CaptionedImage(NamedTuple):
    """Encoded image with its true sentences. group: of related images, which are in one document."""

    key: str
    data: bytes
    sentences: tuple[str, ...]
    group: str


def mixed_documents(
    images: Sequence[CaptionedImage],
    fillers: Sequence[str],
    rng: np.random.Generator,
    images_per_document: int = 4,
    fillers_per_image: int = 1,
    elsewhere: float = 0.5,
) -> Iterator[dict[str, Any]]:
    """Yield rows with key, split and document, all of the training split.

    elsewhere: fraction of sentences that are in another document than their image, chosen at random. A document's
    sentences are in random order. The key of a document names its images, in their order, separated by spaces.
    """
    by_group: dict[str, list[CaptionedImage]] = defaultdict(list)
    for place in rng.permutation(len(images)):
        by_group[images[place].group].append(images[place])
    documents = [
        group[start : start + images_per_document]
        for group in by_group.values()
        for start in range(0, len(group), images_per_document)
    ]
    sentences: list[list[str]] = [[] for _ in documents]
    for number, document in enumerate(documents):
        for image in document:
            for sentence in image.sentences:
                moved = rng.random() < elsewhere
                sentences[int(rng.integers(len(documents))) if moved else number].append(sentence)
        chosen = rng.integers(len(fillers), size=fillers_per_image * len(document)) if fillers else ()
        sentences[number] += [fillers[place] for place in chosen]
    for document, texts in zip(documents, sentences, strict=True):
        pieces: list[dict[str, Any]] = [{"kind": "figure", "text": "", "figure": image.data} for image in document]
        pieces += [{"kind": "paragraph", "text": texts[place], "figure": None} for place in rng.permutation(len(texts))]
        order = np.argsort(rng.random(len(pieces)))
        pieces = [pieces[place] for place in order]
        keys = [document[place].key for place in order.tolist() if place < len(document)]
        yield {"key": " ".join(keys), "split": "train", "document": pieces}


def retrieval_precision(texts: Sequence[Sequence[str]], true: Sequence[frozenset[str]]) -> float:
    """Return the mean fraction of the texts of each image that are among its true ones; images without texts are 0."""
    hits = [
        sum(text in of_image for text in some) / max(len(some), 1) for some, of_image in zip(texts, true, strict=True)
    ]
    return sum(hits) / max(len(hits), 1)
