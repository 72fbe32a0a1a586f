"""The texts of a row by kind (fields), the image that they are of, and texts of the same image in other languages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.text_fields import (
    IMAGE,
    LANGUAGE,
    PASSES_LANG_ID,
    REFERENCE,
    attribution_language,
    field_row,
    field_rows,
    fields_of,
    has_fields,
    is_true,
)
from polymodal.data.columns.column import Column
from polymodal.errors import UserError
from polymodal.modalities import Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE, Caption

TRANSLATED = (REFERENCE, "alt")  # fields of one language, which are compared between languages


@dataclass(frozen=True)
class FieldTexts:
    """image: name of the image, equal for rows of one image. fields: captions by field. passes_lang_id: whether the
    attribution was confirmed to be in the language of the page. translations: captions of other rows of the image, in
    other languages."""

    image: str
    fields: Mapping[str, list[Caption]]
    passes_lang_id: bool = False
    translations: list[Caption] = field(default_factory=list)

    def probabilities(self, weights: Mapping[str, float], checked_attribution: bool = False) -> dict[str, float]:
        """Return sampling probabilities of the fields that are there: weights, renormalized to sum to 1.

        checked_attribution: whether an attribution counts only if it was confirmed. Raises UserError where no field has
        a weight.
        """
        there = {name: weight for name, weight in weights.items() if weight and self.fields.get(name)}
        if checked_attribution and not self.passes_lang_id:
            there.pop("attribution", None)
        if not there:
            raise UserError(f"The row of the image {self.image} has no field with a weight; leave such rows out.")
        return {name: weight / sum(there.values()) for name, weight in there.items()}


class FieldsColumn(Column):
    """Fields of rows in the columns of WIT. In other data the captions of an example are references."""

    reads: ClassVar[tuple[type, ...]] = (Text,)

    def __init__(self, translations: bool = False):
        """translations: whether texts of the same image in other languages are read, too."""
        self.translations = translations
        self._read: tuple[Any, list[dict[str, Any]]] = (None, [])
        self._of_image: list[tuple[Any, dict[str, list[int]]]] = []  # by training rows

    def load(self, corpus: Corpus, row: int) -> FieldTexts:
        if not has_fields(corpus):
            return FieldTexts(corpus.key(row), {REFERENCE: corpus.value(row, corpus.column_with(Text))})
        if not self.translations:
            return _texts(field_row(corpus, row), corpus.key(row))
        records, of_image = self._records(corpus)
        record = records[row]
        others = [records[other] for other in of_image.get(record[IMAGE], ())]
        spoken = record.get(LANGUAGE)
        translations = [
            caption
            for other in others
            if other.get(LANGUAGE) != spoken
            for name, captions in _texts(other, "").fields.items()
            if name in TRANSLATED
            for caption in captions
        ]
        return FieldTexts(**vars(_texts(record, corpus.key(row))) | {"translations": translations})

    def __call__(self, values: list[FieldTexts]) -> list[FieldTexts]:
        return values

    def _records(self, corpus: Corpus) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
        """Return all rows of a corpus, and the training rows of each image, such as a stage selects; each read once."""
        if self._read[0] is not corpus.table:
            self._read, self._of_image = (corpus.table, list(field_rows(corpus, np.arange(len(corpus))))), []
        records, trained = self._read[1], corpus.splits.get("train", ())
        if not any(trained is rows for rows, _ in self._of_image):
            of_image = defaultdict(list)
            for row in np.asarray(trained, dtype=np.int64).tolist():
                of_image[records[row][IMAGE]].append(row)  # an image of several splits teaches no text of the others
            self._of_image = [*self._of_image[-3:], (trained, dict(of_image))]
        return records, next(of_image for rows, of_image in self._of_image if rows is trained)


def _texts(record: Mapping[str, Any], key: str) -> FieldTexts:
    languages = {"attribution": attribution_language(record)}
    spoken = record.get(LANGUAGE) or UNKNOWN_LANGUAGE
    captions = {name: [Caption(text, languages.get(name, spoken))] for name, text in fields_of(record).items()}
    return FieldTexts(record.get(IMAGE) or key, captions, is_true(record.get(PASSES_LANG_ID)))
