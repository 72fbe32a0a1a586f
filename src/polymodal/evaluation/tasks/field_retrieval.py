"""Retrieval between images and each kind of their texts (field), by language, and between languages through the image.

For rows in the columns of WIT (`corpora.text_fields`), for which an image has several rows. Images and texts that occur
twice are one candidate. Attributions that language identification did not confirm are no texts in the language of their
page: they count together, as `und`, and are not compared between languages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.text_fields import (
    CAPTIONS,
    IMAGE,
    LANGUAGE,
    attribution_language,
    field_rows,
    fields_of,
    has_fields,
)
from polymodal.evaluation.capabilities import CanEmbed
from polymodal.evaluation.head_tail import macro_average
from polymodal.evaluation.retrieval import RECALLS, chance_recall, ranks
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import Image, Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE
from polymodal.training.run import embed

MAX_LANGUAGES = 30  # that have scores of their own


@dataclass(frozen=True)
class FieldTest:
    """Unique images and unique texts of one field. images: of each text, the images that have it. texts: the texts
    themselves, of which equal ones in two languages are not compared."""

    image_vectors: Float[Tensor, "images dim"]
    text_vectors: Float[Tensor, "texts dim"]
    languages: list[str]
    images: list[np.ndarray]
    texts: list[str]

    def places(self, language: str) -> np.ndarray:
        return np.flatnonzero(np.array(self.languages) == language)

    @property
    def texts_of(self) -> dict[int, list[int]]:
        """Return the texts of each image."""
        texts: dict[int, list[int]] = defaultdict(list)
        for place, images in enumerate(self.images):
            for image in images.tolist():
                texts[image].append(place)
        return texts


@dataclass(frozen=True)
class _Ranked:
    """Queries in one language. best: rank of the best relevant candidate. counts: relevant ones. unit: an image."""

    language: str
    best: np.ndarray
    counts: np.ndarray
    unit: np.ndarray
    candidates: int


def field_scores(inputs: TaskInputs) -> list[Score]:
    """Recall by field, averaged over languages, and in each language; across languages, from text to text."""
    scores = []
    for split in inputs.test_splits:
        for field, test in field_tests(inputs, split).items():
            name, languages = f"{split}/fields/{field}", sorted({*test.languages})
            to_image = [_text_to_image(test, language) for language in languages]
            scores += _macro(f"{name}/text_to_image", to_image, len(test.image_vectors))
            if 1 < len(languages) <= MAX_LANGUAGES:
                for one in to_image:
                    scores += _macro(f"{name}/text_to_image/{one.language}", [one], len(test.image_vectors), (10,))
            to_text = [_image_to_text(test, language) for language in languages]
            scores += _macro(f"{name}/image_to_text", to_text, len(test.image_vectors))
            across = [one for language in languages for one in _across_languages(test, language)]
            scores += _macro(f"{name}/text_to_text", across, len(test.image_vectors)) if across else []
    return scores


def field_tests(inputs: TaskInputs, split: str) -> dict[str, FieldTest]:
    """Return images and texts of each field that the split has."""
    items, corpus = inputs.item_vectors(split), inputs.corpus
    records = list(field_rows(corpus, items.rows))
    names = [record[IMAGE] or corpus.key(row) for record, row in zip(records, items.rows.tolist(), strict=True)]
    place_of = {name: place for place, name in reversed([*enumerate(names)])}  # the first row of each image
    number = {name: place for place, name in enumerate(sorted(place_of))}
    first = torch.tensor([place_of[name] for name in number])
    tests = {}
    for field in CAPTIONS:
        having: dict[tuple[str, str], set[int]] = defaultdict(set)
        for record, name in zip(records, names, strict=True):
            if text := fields_of(record).get(field):
                spoken = record.get(LANGUAGE) or UNKNOWN_LANGUAGE
                having[attribution_language(record) if field == "attribution" else spoken, text].add(number[name])
        if having:
            vectors = embed(inputs.method, inputs.processor, text=[text for _, text in having])["text"]
            images = [np.array(sorted(images)) for images in having.values()]
            languages, texts = [language for language, _ in having], [text for _, text in having]
            tests[field] = FieldTest(items.vectors[first], vectors, languages, images, texts)
    return tests


def _text_to_image(test: FieldTest, language: str) -> _Ranked:
    places = test.places(language)
    relevant = [test.images[place] for place in places]
    best = ranks(test.text_vectors[torch.from_numpy(places)], test.image_vectors, relevant)
    return _ranked(language, best, relevant, [int(images[0]) for images in relevant], len(test.image_vectors))


def _image_to_text(test: FieldTest, language: str) -> _Ranked:
    """Candidates are the texts in the language; any text of the image is right."""
    places = test.places(language)
    of_place = {place: number for number, place in enumerate(places.tolist())}
    right = {image: [of_place[one] for one in texts if one in of_place] for image, texts in test.texts_of.items()}
    relevant = {image: np.array(texts) for image, texts in sorted(right.items()) if texts}
    queries = test.image_vectors[torch.tensor(list(relevant))]
    best = ranks(queries, test.text_vectors[torch.from_numpy(places)], [*relevant.values()])
    return _ranked(language, best, [*relevant.values()], [*relevant], len(places))


def _across_languages(test: FieldTest, language: str) -> Iterator[_Ranked]:
    """Queries are texts of a language, candidates the texts of all others, and right are those of the same image.

    A query whose very words are a candidate, such as a name, is left out: any encoder finds it.
    """
    languages = np.array(test.languages)
    others = np.flatnonzero((languages != language) & (languages != UNKNOWN_LANGUAGE))
    words = {test.texts[place].casefold() for place in others.tolist()}
    spoken = np.flatnonzero(languages == language).tolist() if language != UNKNOWN_LANGUAGE else []
    queries = [place for place in spoken if test.texts[place].casefold() not in words]
    of_place, texts_of = {place: number for number, place in enumerate(others.tolist())}, test.texts_of
    relevant = {
        place: sorted({of_place[one] for image in test.images[place] for one in texts_of[image] if one in of_place})
        for place in queries
    }
    relevant = {place: texts for place, texts in relevant.items() if texts}
    if relevant:
        right = [np.array(texts) for texts in relevant.values()]
        vectors = test.text_vectors[torch.tensor(list(relevant))]
        best = ranks(vectors, test.text_vectors[torch.from_numpy(others)], right)
        yield _ranked(language, best, right, [int(test.images[place][0]) for place in relevant], len(others))


def _ranked(
    language: str, best: np.ndarray, relevant: Sequence[np.ndarray], unit: Sequence[int], candidates: int
) -> _Ranked:
    return _Ranked(language, best, np.array([len(right) for right in relevant]), np.array(unit), candidates)


def _macro(name: str, parts: Sequence[_Ranked], units: int, ks: Sequence[int] = RECALLS) -> list[Score]:
    """The mean of the languages' recalls, so that frequent languages do not drown rare ones."""
    tags = [part.language for part in parts for _ in part.best]
    unit = np.concatenate([part.unit for part in parts])
    scores = []
    for k in ks:
        hits = np.concatenate([(part.best <= k).astype(float) for part in parts])
        chance = float(np.mean([chance_recall(part.counts, part.candidates, k) for part in parts]))
        scores.append(macro_average(f"{name}/R@{k}", hits, tags, unit, units, chance))
    return scores


task = Task(
    capability=CanEmbed,
    requires=((Text, Image),),
    condition=lambda inputs: has_fields(inputs.corpus),
    order=14,
    score=field_scores,
    metrics={"R@*": MetricKind()},
    headline=(
        *(f"fields/{field}/text_to_image/R@10" for field in CAPTIONS),
        "fields/reference/image_to_text/R@10",
        "fields/reference/text_to_text/R@10",
    ),
    forward_methods=("embed",),
    protocol=lambda inputs: {
        "averaged_over": "languages of the rows (macro-average)",
        "relevant": "any image or text of the same image; ties count as ranked before",
        "k": list(RECALLS),
    },
)
