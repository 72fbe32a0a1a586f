"""Objects of an image with their bounding boxes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, Column, PassThroughColumn
from polymodal.errors import MissingModality, UnreadableExample, UserError
from polymodal.modalities import Image, Regions
from polymodal.modalities.region import Region


class RegionsColumn(PassThroughColumn):
    """Objects of an image; boxes are whole thousandths of its width and height."""

    reads = (Regions,)

    def load(self, corpus: Corpus, row: int) -> list[Region]:
        width, height = corpus.value(row, corpus.column_with(Image)).size
        scale = (1000 / width, 1000 / height) * 2
        return [
            region._replace(box=tuple(round(edge * by) for edge, by in zip(region.box, scale, strict=True)))
            for region in super().load(corpus, row)
        ]


class PhraseBox(NamedTuple):
    """A phrase and its box: left, top, right, bottom as fractions of the image."""

    phrase: str
    box: tuple[float, float, float, float]


class RegionPhrasesColumn(PassThroughColumn):
    """Phrases of an image's regions; boxes are fractions of the image, and tensors in batches.

    Boxes are cut to the image; those without area, and those without a phrase, are left out.
    """

    reads = (Regions,)

    def load(self, corpus: Corpus, row: int) -> list[PhraseBox]:
        given = super().load(corpus, row)
        if not given:
            return []
        width, height = corpus.value(row, corpus.column_with(Image)).size
        regions = []
        for region in given:
            left, top, right, bottom = (
                min(max(edge / side, 0.0), 1.0) for edge, side in zip(region.box, (width, height) * 2, strict=True)
            )
            if left < right and top < bottom and region.name and region.name.strip():
                regions.append(PhraseBox(region.name, (left, top, right, bottom)))
        return regions

    def __call__(self, boxes: list[tuple[float, ...]]) -> Float[Tensor, "batch 4"]:
        return torch.tensor(boxes).reshape(-1, 4)


@dataclass(frozen=True)
class PhraseVocabularyColumn(RegionPhrasesColumn):
    """Phrases of an image's regions, and those of the training split, of which negatives are sampled.

    max_phrases: size of the vocabulary. phrases: the vocabulary, most frequent first.
    """

    max_phrases: int = 1000
    phrases: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> PhraseVocabularyColumn:
        """Count the names of regions in a sample of the training split."""
        corpus, counts = corpora[0], Counter[str]()
        column = corpus.column_with(Regions)
        for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
            with contextlib.suppress(UnreadableExample):  # the loader counts and names them
                counts.update(region.name for region in corpus.columns[column].decode(raw or []) if region.name)
        return dataclasses.replace(self, phrases=[phrase for phrase, _ in counts.most_common(self.max_phrases)])

    def sample(self, count: int, rng: np.random.Generator) -> list[str]:
        """Return `count` phrases sampled at random, without replacement; fewer where there are fewer."""
        return [self.phrases[place] for place in rng.permutation(len(self.phrases))[:count]]


def check_phrases(corpus: Corpus, why: str) -> None:
    """Raise UserError where no row of the training split has a region that `RegionPhrasesColumn` keeps.

    why: who needs one, for the message about a corpus without regions, which is MissingModality.
    """
    if not corpus.has_modality(Regions):
        message = (
            f"The corpus '{corpus.name}' has no regions, such as instances_*.json of COCO, or a column of lists of "
            f"{{name, box}}: {why}."
        )
        raise MissingModality(message + corpus.hint, "regions")
    column = RegionPhrasesColumn()
    for row in corpus.rows("train").tolist():
        with contextlib.suppress(UnreadableExample):
            if column.load(corpus, row):
                return
    raise UserError(
        f"No training row of '{corpus.name}' has a region with a name and a box within its image: `regions` are lists "
        'of {"name": "red cup", "box": [left, top, right, bottom]} in pixels.'
    )


@dataclass(frozen=True)
class EntityRegionsColumn(PassThroughColumn):
    """Objects of a clip's first frame; boxes become tensors.

    find_entities: returns the names of the entities in a corpus. entities: these names.
    """

    reads = (Regions,)
    find_entities: Callable[[Corpus], Sequence[str]]
    entities: Sequence[str] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> EntityRegionsColumn:
        return dataclasses.replace(self, entities=list(self.find_entities(corpora[0])))

    def settings(self) -> dict[str, Any]:
        return {"entities": list(self.entities)}

    def __call__(self, boxes: list[tuple[float, ...]]) -> Float[Tensor, "batch 4"]:
        """boxes: left, top, right, bottom as fractions of the square frame."""
        return torch.tensor(boxes)
