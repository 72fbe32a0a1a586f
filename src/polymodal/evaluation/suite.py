"""Everything that can be asked of a run on a corpus: what the corpus has columns for and the method is capable of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.evaluation.classification import linear_probe, prompt_ensemble, zero_shot
from polymodal.evaluation.grounding import grounding_scores
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.statistics import Score
from polymodal.modalities import Category, Image, Mask, Text
from polymodal.training.run import Run, embed
from polymodal.types import CanEmbed, CanEmbedPatches, Processor


@dataclass(frozen=True)
class PairedTest:
    """A split with its vectors: one a picture, and one a caption; owner says which picture a caption belongs to."""

    rows: np.ndarray
    images: Float[Tensor, "images dim"]
    texts: list[str]
    text_vectors: Float[Tensor, "texts dim"]
    owner: np.ndarray

    @classmethod
    def of(
        cls, method: nn.Module, processor: Processor, reader: Reader, split: str, language: str | None
    ) -> PairedTest:
        """language: only captions in it; None takes all."""
        rows, examples = reader.read_all(reader.corpus.rows(split))
        captions = [
            (number, caption.text)
            for number, example in enumerate(examples)
            for caption in example["text"]
            if language in (None, caption.language)
        ]
        owner, texts = np.array([number for number, _ in captions], dtype=np.int64), [text for _, text in captions]
        vectors = embed(method, processor, image=[example["image"] for example in examples])
        return cls(rows, vectors["image"], texts, embed(method, processor, text=texts)["text"], owner)

    def text_to_image(self, name: str) -> list[Score]:
        """Queries are captions; right are all pictures that have this very caption."""
        pictures = defaultdict(list)
        for text, owner in zip(self.texts, self.owner, strict=True):
            pictures[text].append(owner)
        relevant = [np.unique(pictures[text]) for text in self.texts]
        found = ranks(self.text_vectors, self.images, relevant)
        return retrieval_scores(name, found, relevant, len(self.images), self.owner)

    def image_to_text(self, name: str) -> list[Score]:
        """Queries are pictures; right are all captions equal to one of their own."""
        places = defaultdict(list)
        own: dict[int, set[str]] = defaultdict(set)
        for place, (text, owner) in enumerate(zip(self.texts, self.owner, strict=True)):
            places[text].append(place)
            own[int(owner)].add(text)
        asking = np.array(sorted(own))
        relevant = [np.array(sorted(place for text in own[number] for place in places[text])) for number in asking]
        found = ranks(self.images[torch.from_numpy(asking)], self.text_vectors, relevant)
        return retrieval_scores(name, found, relevant, len(self.texts), asking)

    def zero_shot_by_name(self, name: str) -> list[Score]:
        """Which concept of the split is it? A concept's class vector is the ensemble of its captions."""
        asking = np.unique(self.owner)
        classes = prompt_ensemble([self.text_vectors[torch.from_numpy(self.owner == number)] for number in asking])
        relevant = [np.array([place]) for place in range(len(asking))]
        found = ranks(self.images[torch.from_numpy(asking)], classes, relevant)
        return [Score(f"{name}/top-{k}", (found <= k).astype(float), k / len(asking)) for k in (1, 5)]


def main_language(corpus: Corpus) -> str | None:
    """The language that training draws most often; None when the corpus does not say."""
    text = corpus.columns[corpus.column_of(Text)]
    assert isinstance(text, Text)
    shares = text.language_shares
    return max(shares, key=lambda language: shares[language]) if shares else None


def evaluate(run: Run, corpus: Corpus, reader: Reader | None = None) -> list[Score]:
    """All scores that this method can have on the test splits of this corpus.

    reader: one that has read the corpus already, to save decoding again.
    """
    reader = reader or Reader(corpus, run.processor)
    scores: list[Score] = []
    kinds = {type(modality) for modality in corpus.columns.values()}
    if isinstance(run.model, CanEmbed) and {Image, Text} <= kinds:
        scores += _paired_scores(run, corpus, reader)
    if isinstance(run.model, CanEmbedPatches) and {Image, Mask} <= kinds:
        scores += grounding_scores(run, corpus, "test")
    return scores


def _paired_scores(run: Run, corpus: Corpus, reader: Reader) -> list[Score]:
    language, scores = main_language(corpus), []
    for split in (split for split in corpus.splits if split.startswith("test")):
        test = PairedTest.of(run.model, run.processor, reader, split, language)
        scores += test.text_to_image(f"{split}/text_to_image") + test.image_to_text(f"{split}/image_to_text")
        scores += test.zero_shot_by_name(f"{split}/zero_shot_by_name")
        if corpus.label is not None:
            scores += _label_scores(run, corpus, reader, split, test)
        if split == "test":
            scores += _language_scores(run, corpus, reader, language)
    return scores


def _label_scores(run: Run, corpus: Corpus, reader: Reader, split: str, test: PairedTest) -> list[Score]:
    assert corpus.label is not None
    modality = corpus.columns[corpus.label]
    assert isinstance(modality, Category)
    scores = []
    labels = _labels(corpus, test.rows)
    if corpus.prompts:
        prompts = [list(corpus.prompts[name]) for name in modality.names]
        vectors = embed(run.model, run.processor, text=[text for texts in prompts for text in texts])["text"]
        classes = prompt_ensemble(vectors.split([len(texts) for texts in prompts]))
        scores.append(zero_shot(f"{split}/zero_shot_{corpus.label}/accuracy", test.images, labels, classes))
    if {"train", "validation"} <= set(corpus.splits):
        train, tuning = (_vectors_and_labels(run, corpus, reader, part) for part in ("train", "validation"))
        known = np.isin(labels, train[1])
        name = f"{split}/linear_probe_{corpus.label}/accuracy"
        scores.append(linear_probe(name, train, tuning, (test.images.numpy()[known], labels[known])))
    return scores


def _vectors_and_labels(run: Run, corpus: Corpus, reader: Reader, split: str) -> tuple[np.ndarray, np.ndarray]:
    rows, examples = reader.read_all(corpus.rows(split))
    vectors = embed(run.model, run.processor, image=[example["image"] for example in examples])["image"]
    return vectors.numpy(), _labels(corpus, rows)


def _labels(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    assert corpus.label is not None
    return np.array([corpus.value(row, corpus.label) for row in rows])


def _language_scores(run: Run, corpus: Corpus, reader: Reader, main: str | None) -> list[Score]:
    """Text-to-image R@10 in every language."""
    text = corpus.columns[corpus.column_of(Text)]
    assert isinstance(text, Text)
    scores = []
    for language in text.language_shares if len(text.language_shares) > 1 else ():
        test = PairedTest.of(run.model, run.processor, reader, "test", language)
        found = test.text_to_image(f"test/text_to_image_{language}")
        scores += [score for score in found if score.name.endswith("R@10")]
    return scores


def validation(corpus: Corpus) -> Any:
    """What `train` calls now and then: text-to-image figures on the validation split, for learning curves."""
    readers: dict[int, Reader] = {}

    def figures(method: nn.Module, processor: Processor) -> Mapping[str, float]:
        if not isinstance(method, CanEmbed):
            return {}
        reader = readers.setdefault(id(processor), Reader(corpus, processor))
        test = PairedTest.of(method, processor, reader, "validation", main_language(corpus))
        return {score.name: score.value for score in test.text_to_image("validation/text_to_image")}

    return figures
