"""Languages of a corpus: selection and sampling weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus, Part
from polymodal.corpora.mixture import Mixture, mix_corpora
from polymodal.errors import UserError, unknown
from polymodal.modalities import Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE, without_private_use

MAX_CAPTIONED = 200_000  # rows that languages are counted on


def in_languages(corpus: Corpus, languages: Sequence[str]) -> Corpus:
    """Return the corpus with captions in these languages (BCP 47 codes) only, without examples that have none.

    Raises UserError for a language of no training example, with the nearest one, and for streamed shards, whose
    languages are not known in advance.
    """
    kept, known = _only(corpus, tuple(languages))
    for language in languages:
        if language not in known:
            raise unknown("language", language, known)
    return replace(kept, choices={**corpus.choices, "languages": list(languages)})


def _only(corpus: Corpus, languages: tuple[str, ...]) -> tuple[Corpus, set[str]]:
    """Return the result of `in_languages`, and all languages of the training captions.

    Parts of a mixture without text stay unchanged.
    """
    if isinstance(corpus, Mixture):
        found = [_only(part, languages) if part.has_modality(Text) else (part, set[str]()) for part in corpus.corpora]
        weighted = [(part, weight) for (part, _), weight in zip(found, corpus.weights, strict=True)]
        mixed = mix_corpora(weighted, every_column=bool(corpus.choices.get("every_column")))
        return mixed, set[str]().union(*(available for _, available in found))
    if corpus.choices.get("stream"):
        raise UserError(
            "--language reads all captions first, which shards that are read where they lie are too many for."
        )
    column, splits, available = corpus.column_with(Text), {}, set[str]()
    for split, rows in corpus.splits.items():
        spoken = [
            set[str]().union(*map(without_private_use, _languages(value))) for value in corpus.raw_values(rows, column)
        ]
        selected = np.array([not spoken_languages.isdisjoint(languages) for spoken_languages in spoken], dtype=bool)
        if selected.any() or split == "train":
            splits[split] = rows[selected]
        if split == "train":
            available = available.union(*spoken)
    columns = {name: kind.only(languages) if isinstance(kind, Text) else kind for name, kind in corpus.columns.items()}
    return replace(corpus, columns=columns, splits=splits), available


def _languages(stored: Any) -> list[str]:
    """Return the language of each stored caption of an example."""
    records = stored if isinstance(stored, list) else [stored]
    return [record["language"] if isinstance(record, dict) else UNKNOWN_LANGUAGE for record in records if record]


def row_languages(corpus: Corpus, rows: np.ndarray) -> list[list[str]]:
    """Return the language of each caption of each row, of those languages that the corpus reads."""
    column = corpus.column_with(Text)
    modality = corpus.columns[column]
    assert isinstance(modality, Text)
    stored = corpus.raw_values(rows, column)
    return [[language for language in _languages(value) if _is_read(language, modality)] for value in stored]


def _is_read(language: str, modality: Text) -> bool:
    return not modality.languages or not without_private_use(language).isdisjoint(modality.languages)


def with_language_temperature(corpus: Corpus, temperature: float) -> Corpus:
    """Return the corpus with languages sampled proportionally to (captions in the language)^(1 / temperature).

    1 samples them by frequency, a large temperature almost uniformly (Conneau et al. 2020, section 3.1, with alpha = 1
    / temperature). Of examples with captions in several languages, one caption is sampled; examples in a single
    language, such as speech, are themselves sampled, unless they are parts of a mixture. Raises UserError for a
    temperature that is not positive.
    """
    if temperature <= 0:
        raise UserError("--language-temperature is positive: 1 keeps the shares of the data, 100 evens them out.")
    column = corpus.column_with(Text)
    modality = corpus.columns[column]
    assert isinstance(modality, Text)
    stored = corpus.raw_values(corpus.sample("train", MAX_CAPTIONED), column)
    counts = Counter(spoken for value in stored for spoken in _languages(value) if _is_read(spoken, modality))
    shares = {language: count ** (1 / temperature) for language, count in counts.items()}
    whole = sum(shares.values()) or 1.0
    drawn = replace(modality, language_shares={language: share / whole for language, share in shares.items()})
    changed = replace(
        corpus,
        columns={**corpus.columns, column: drawn},
        choices={**corpus.choices, "language_temperature": temperature},
    )
    if type(changed) is not Corpus:
        return changed
    own = {field.name: getattr(changed, field.name) for field in fields(changed)}
    return ByLanguage(**own, temperature=temperature)


@dataclass(frozen=True, kw_only=True)
class ByLanguage(Corpus):
    """Corpus with one part per language of monolingual examples; see `with_language_temperature`."""

    temperature: float

    def parts(self, split: str) -> list[Part]:
        rows = self.rows(split)
        spoken = [{*_languages(value)} for value in self.raw_values(rows, self.column_with(Text))]
        only = np.array([next(iter(languages)) if len(languages) == 1 else "" for languages in spoken])
        groups = [rows[only == language] for language in np.unique(only)]
        return [Part(group, len(group) ** (1 / self.temperature)) for group in groups]
