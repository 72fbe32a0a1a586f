"""Vectors of a split: of what texts are about, and of its captions, with retrieval between the two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.evaluation.classification import prompt_ensemble
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Text
from polymodal.training.run import embed
from polymodal.types import Example


@dataclass(frozen=True)
class ItemVectors:
    """A split's readable examples with the vectors of what texts are about in them, such as their images."""

    rows: np.ndarray
    examples: list[Example]
    vectors: Float[Tensor, "items dim"]

    @classmethod
    def of(cls, method: nn.Module, processor: Processor, reader: Reader, split: str, item: str) -> ItemVectors:
        """item: `image`, or another name that the method knows such a column by."""
        rows, examples = reader.read_split(split)
        vectors = embed(method, processor, 256, **{item: [example[item] for example in examples]})[item]
        return cls(rows, examples, vectors)


@dataclass(frozen=True)
class PairedTest:
    """A split with its vectors: one an item, such as an image, and one a caption.

    owner: which item a caption belongs to.
    """

    rows: np.ndarray
    items: Float[Tensor, "items dim"]
    texts: list[str]
    text_vectors: Float[Tensor, "texts dim"]
    owner: np.ndarray

    @classmethod
    def of(cls, method: nn.Module, processor: Processor, items: ItemVectors, language: str | None) -> PairedTest:
        """language: only captions in it; None takes all. Raises UserError when there are none."""
        captions = [
            (number, caption.text)
            for number, example in enumerate(items.examples)
            for caption in example["text"]
            if language in (None, caption.language)
        ]
        if not captions:
            raise UserError(f"There is no caption in the language '{language}'.")
        owner, texts = np.array([number for number, _ in captions], dtype=np.int64), [text for _, text in captions]
        vectors = embed(method, processor, text=texts)["text"]
        return cls(items.rows, items.vectors, texts, vectors, owner)

    def text_ranks(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The rank of each caption's best relevant item, and its relevant items: all that have this very caption."""
        having = defaultdict(list)
        for text, owner in zip(self.texts, self.owner, strict=True):
            having[text].append(owner)
        relevant = [np.unique(having[text]) for text in self.texts]
        return ranks(self.text_vectors, self.items, relevant), relevant

    def text_to_item(self, name: str) -> list[Score]:
        """Queries are captions."""
        best_ranks, relevant = self.text_ranks()
        return retrieval_scores(name, best_ranks, relevant, len(self.items), self.owner)

    def item_to_text(self, name: str) -> list[Score]:
        """Queries are items; right are all captions equal to one of their own."""
        places = defaultdict(list)
        captions_of: dict[int, set[str]] = defaultdict(set)
        for place, (text, owner) in enumerate(zip(self.texts, self.owner, strict=True)):
            places[text].append(place)
            captions_of[int(owner)].add(text)
        asking = np.array(sorted(captions_of))
        relevant = [
            np.array(sorted(place for text in captions_of[number] for place in places[text])) for number in asking
        ]
        best_ranks = ranks(self.items[torch.from_numpy(asking)], self.text_vectors, relevant)
        return retrieval_scores(name, best_ranks, relevant, len(self.texts), asking)

    def zero_shot_concept(self, name: str) -> list[Score]:
        """Which concept of the split is it? A concept's class vector is the ensemble of its captions.

        Items whose captions are equal, up to case and spaces, are of one concept.
        """
        asking, concepts = np.unique(self.owner), defaultdict(list)
        for number in asking:
            of_item = np.flatnonzero(self.owner == number)
            captions = sorted({" ".join(self.texts[place].casefold().split()) for place in of_item})
            concepts[tuple(captions)].append((number, of_item))
        classes = prompt_ensemble([self.text_vectors[torch.from_numpy(items[0][1])] for items in concepts.values()])
        class_of = {number: place for place, items in enumerate(concepts.values()) for number, _ in items}
        relevant = [np.array([class_of[number]]) for number in asking]
        best_ranks = ranks(self.items[torch.from_numpy(asking)], classes, relevant)
        return [Score(f"{name}/top-{k}", (best_ranks <= k).astype(float), min(k / len(classes), 1.0)) for k in (1, 5)]


def first_captions(corpus: Corpus, examples: Sequence[Example]) -> list[str]:
    """Return the first caption of each example, in the main language."""
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    return [text.in_main_language(example["text"])[0].text for example in examples]


def main_language(corpus: Corpus) -> str | None:
    """The language that training draws most often; None when the corpus does not say."""
    text = corpus.columns[corpus.column_with(Text)]
    assert isinstance(text, Text)
    return text.main_language
