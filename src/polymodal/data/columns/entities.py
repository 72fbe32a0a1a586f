"""Entities of examples, such as findings of an X-ray: present, absent or unknown, by name.

Images have those of all their captions, of a table, or of their class; a text has those that it mentions.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, BaseColumn, Column
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Category, Table, Text
from polymodal.modalities.text_augmentation import STOP_WORDS

CHEXPERT = (  # findings, in the order of MedCLIP's code
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Lung Opacity", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
EntitySource = Literal["captions", "table", "label", "none"]
NEGATIONS = frozenset(["no", "not", "without", "never", "negative", "absent", "free", "denies", "neither", "nor"])
UNCERTAIN = frozenset(
    ["may", "might", "possible", "possibly", "probable", "probably", "likely", "suspected", "questionable", "cannot"]
)
SCOPE = 6  # words after a cue that it applies to (NegEx, Chapman et al. 2001, has five and the term)
MAX_FREQUENCY = 0.5  # of the examples: words of more of them, such as articles, tell none from another


def mentions(text: str, names: Mapping[str, int]) -> dict[int, int]:
    """Return the entities that a text mentions, by index: 1 where present, 0 where uncertain, -1 where absent.

    A mention is absent or uncertain after such a cue in its clause, at most six words before. Present mentions go
    before uncertain, and these before absent ones (the labeler of CheXpert, Irvin et al. 2019, section 3). names: in
    lower case, of words separated by single blanks.
    """
    max_words = max((name.count(" ") + 1 for name in names), default=0)
    mentioned: dict[int, int] = {}
    for clause in re.split(r"[.;:!?\n]|\bbut\b|\bexcept\b", text.lower()):
        words = re.findall(r"[\w'-]+", clause)
        for start in range(len(words)):
            for count in range(1, max_words + 1):
                index = names.get(" ".join(words[start : start + count])) if start + count <= len(words) else None
                if index is not None:
                    before = {*words[max(start - SCOPE, 0) : start]}
                    state = 0 if before & UNCERTAIN else -1 if before & NEGATIONS else 1
                    mentioned[index] = max(mentioned.get(index, -1), state)
    return mentioned


@dataclass(frozen=True)
class EntitiesColumn(BaseColumn):
    """Entity vectors in {-1, 0, 1}: absent, unknown, present.

    names: of the entities; learned if empty: the most frequent words of captions, the columns of the table, or the
    classes. source: what says which an image has; "none" has no entities. max_entities: learned from captions. default:
    an entity that a text without any mention has, such as "No Finding" (MedCLIP), and with `captions` an image of which
    they state none as present or uncertain (the labeler of CheXpert, section 3).
    """

    source: EntitySource = "captions"
    names: Sequence[str] = ()
    max_entities: int = 256
    default: str = ""

    @property
    def reads(self) -> tuple[type, ...]:  # type: ignore[override]
        """The modality that says which entities an image has."""
        return {"table": (Table,), "label": (Category,)}.get(self.source, (Text,))

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> EntitiesColumn:
        """Raises UserError for a corpus without class, and where the default is none of the entities."""
        column = replace(self, names=list(self.names or self._learned(corpora[0])))
        if self.default and self.default.lower() not in column._indices:
            raise UserError(f"'{self.default}' is none of the entities; they are {', '.join(column.names) or 'none'}.")
        return column

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        """Return the entity vector of a row's image; zeros in a corpus without table or label, such as one to evaluate.

        Raises UnreadableExample.
        """
        if self.source == "captions":
            texts = corpus.columns[corpus.column_with(Text)]
            assert isinstance(texts, Text)
            captions = texts.in_main_language(corpus.value(row, corpus.column_with(Text)))
            mentioned = mentions("\n".join(caption.text for caption in captions), self._indices)
            return self._vector(mentioned, default=all(state < 0 for state in mentioned.values()))
        vector = np.zeros(len(self.names), dtype=np.float32)
        stated: Mapping[str, Any] = {}
        if self.source == "label" and corpus.label is not None:
            name = corpus.raw(row, corpus.label)
            stated = {str(name): 1}
        elif self.source == "table" and corpus.has_modality(Table):
            stated = corpus.raw(row, corpus.column_with(Table)) or {}
        for name, value in stated.items():
            if (index := self._indices.get(_plain(name))) is not None:
                vector[index] = _state(value)
        return vector

    def of_text(self, text: str) -> np.ndarray:
        """Return the entity vector of a text; one without a mention that is certain has the default entity."""
        mentioned = mentions(text, self._indices)
        return self._vector(mentioned, default=not any(mentioned.values()))

    def of_pairs(
        self, images: list[np.ndarray], texts: Sequence[str]
    ) -> tuple[Float[Tensor, "batch entities"], Float[Tensor, "batch entities"]]:
        """Return the entities of images and of their texts, which share those of a class where `source` is the label.

        images: what `load` returned.
        """
        return self(images), self(images if self.source == "label" else [self.of_text(text) for text in texts])

    def __call__(self, values: list[np.ndarray]) -> Float[Tensor, "batch entities"]:
        return torch.from_numpy(np.stack(values))

    def _vector(self, mentioned: Mapping[int, int], default: bool) -> np.ndarray:
        vector = np.zeros(len(self.names), dtype=np.float32)
        for index, state in mentioned.items():
            vector[index] = state
        if default and self.default:
            vector[self._indices[_plain(self.default)]] = 1
        return vector

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {_plain(name): index for index, name in enumerate(self.names)}

    def _learned(self, corpus: Corpus) -> Sequence[str]:
        if self.source == "none":
            return ()
        if self.source == "captions":
            return _frequent_words(corpus, self.max_entities)
        if self.source == "label":
            modality = corpus.columns[corpus.label] if corpus.label is not None else None
            if not isinstance(modality, Category):
                raise UserError(
                    f"The corpus '{corpus.name}' has no label; take the entities from captions.{corpus.hint}"
                )
            return modality.names
        table = corpus.columns[corpus.column_with(Table)]
        assert isinstance(table, Table)
        return [*table.numeric, *table.categorical]


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[\w'-]+", name.lower().replace("_", " ")))


def _state(value: Any) -> float:
    """Return 1 for a finding that is stated as 1, -1 for 0, and 0 for all else, such as -1 (uncertain) in CheXpert."""
    with contextlib.suppress(TypeError, ValueError):
        return {1.0: 1.0, 0.0: -1.0}.get(float(value), 0.0)
    return 0.0


def _frequent_words(corpus: Corpus, max_entities: int) -> list[str]:
    """Return the words that most training examples name, but for those of one example or of more than half of them."""
    column = corpus.column_with(Text)
    modality = corpus.columns[column]
    assert isinstance(modality, Text)
    rows, counts = corpus.sample("train", MAX_ROWS), Counter[str]()
    for raw in corpus.raw_values(rows, column):
        with contextlib.suppress(UnreadableExample):
            captions = modality.in_main_language(modality.decode(raw))
            text = " ".join(caption.text for caption in captions).lower()
            counts.update({word for word in re.findall(r"[\w'-]+", text) if not word.isdigit()})
    named = [word for word, count in counts.most_common() if 1 < count <= MAX_FREQUENCY * len(rows)]
    return [word for word in named if word not in NEGATIONS | UNCERTAIN | STOP_WORDS][:max_entities]
