"""Mixtures: several corpora as one, sampled by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora.corpus import About, Corpus, Part
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Category, Modality


def mix_corpora(
    parts: Sequence[tuple[Corpus, float]], temperature: float | None = None, every_column: bool = False
) -> Mixture:
    """Return a corpus of the examples of all parts, one part after the other, sampled by weight in training.

    It has the modalities that all parts have, under the names of the first part. weights: relative, > 0. temperature:
    instead of weights, proportional to (training examples)^(1 / temperature): 1 samples all examples equally often, a
    large one all parts (Conneau et al. 2020, section 3.1). every_column: all columns of all parts instead; a value is
    None where an example's part has none. Raises UserError for no part, a weight that is not positive, or, without
    `every_column`, no common modality.
    """
    corpora, weights = [corpus for corpus, _ in parts], [weight for _, weight in parts]
    if not corpora:
        raise UserError("A mixture needs at least one corpus.")
    if temperature is not None:
        weights = [len(corpus.rows("train")) ** (1 / temperature) for corpus in corpora]
    if min(weights) <= 0:
        raise UserError(f"The weights of a mixture are positive; they are {', '.join(f'{w:g}' for w in weights)}.")
    names = _all_columns(corpora) if every_column else _common_columns(corpora)
    if not names:
        raise UserError(f"{' and '.join(corpus.name for corpus in corpora)} have no modality in common.")
    kinds = {
        name: next(c.columns[own] for c, own in zip(corpora, theirs, strict=True) if own)
        for name, theirs in names.items()
    }
    begins = np.cumsum([0, *(len(corpus) for corpus in corpora)])
    splits: dict[str, list[np.ndarray]] = {}
    for begin, corpus in zip(begins, corpora, strict=False):
        for split, rows in corpus.splits.items():
            splits.setdefault(split, []).append(rows + begin)
    return Mixture(
        about=About(
            name="+".join(corpus.name for corpus in corpora),
            description=" and ".join(corpus.about.description for corpus in corpora),
            license="; ".join(dict.fromkeys(corpus.about.license for corpus in corpora)),
            source="; ".join(dict.fromkeys(corpus.about.source for corpus in corpora)),
            modalities=tuple(dict.fromkeys(kind for corpus in corpora for kind in corpus.about.modalities))
            if every_column
            else corpora[0].about.modalities,
        ),
        table=pa.table({}),
        columns=kinds,
        splits={split: np.concatenate(rows) for split, rows in splits.items()},
        choices={"parts": [[dict(corpus.choices), weight] for corpus, weight in zip(corpora, weights, strict=True)]}
        | ({"every_column": True} if every_column else {}),
        corpora=tuple(corpora),
        weights=tuple(weights),
        names=names,
    )


@dataclass(frozen=True, kw_only=True)
class Mixture(Corpus):
    """Corpus made of several corpora; see `mix_corpora`. names: for each column, its name in every part, None for
    none."""

    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]
    names: Mapping[str, Sequence[str | None]]

    def __len__(self) -> int:
        return sum(map(len, self.corpora))

    def value(self, row: int, column: str, **options: Any) -> Any:
        index, corpus, part_row = self._find(row)
        name = self.names[column][index]
        if name is None:
            raise UnreadableExample(f"there is no {column}")
        return corpus.value(part_row, name, **options)

    def raw(self, row: int, column: str) -> Any:
        index, corpus, part_row = self._find(row)
        name = self.names[column][index]
        return None if name is None else corpus.raw(part_row, name)

    def raw_values(self, rows: np.ndarray, column: str) -> list[Any]:
        return [self.raw(row, column) for row in rows]

    def stored_lengths(self, column: str) -> np.ndarray:
        return np.concatenate(
            [
                np.zeros(len(corpus), dtype=np.int64) if name is None else corpus.stored_lengths(name)
                for corpus, name in zip(self.corpora, self.names[column], strict=True)
            ]
        )

    def key(self, row: int) -> str:
        _, corpus, part_row = self._find(row)
        return f"{corpus.name}/{corpus.key(part_row)}"

    def parts(self, split: str) -> list[Part]:
        """Return the training sources of all parts, of their rows those that are in the split, as often as they are.

        Raises UserError where rows of shards are selected that are streamed.
        """
        parts, begin = [], 0
        times = np.bincount(self.splits.get(split, np.zeros(0, dtype=np.int64)), minlength=len(self))
        for corpus, weight in zip(self.corpora, self.weights, strict=True):
            for part in corpus.parts(split) if len(corpus.splits.get(split, ())) else ():
                rows = part.rows + begin
                if part.order is not None and (times[rows] != 1).any():
                    raise UserError("Training rows are selected, which streamed data do not allow; leave out --stream.")
                if len(rows := np.repeat(rows, times[rows])):
                    parts.append(Part(rows, weight * part.weight, part.order))
            begin += len(corpus)
        return parts

    def _find(self, row: int) -> tuple[int, Corpus, int]:
        part_row = int(row)
        for index, corpus in enumerate(self.corpora):
            if part_row < len(corpus):
                return index, corpus, part_row
            part_row -= len(corpus)
        raise IndexError(row)


def _common_columns(corpora: Sequence[Corpus]) -> dict[str, list[str | None]]:
    """Map columns of the first part to the first column of the same modality in each part, where all have one."""
    names: dict[str, list[str | None]] = {}
    for name, modality in corpora[0].columns.items():
        theirs = [_column(corpus, type(modality)) for corpus in corpora]
        if all(theirs) and theirs not in names.values():
            names[name] = theirs
    return names


def _all_columns(corpora: Sequence[Corpus]) -> dict[str, list[str | None]]:
    """Map columns to their names in each part; columns of one modality are matched in order."""
    names: dict[str, list[str | None]] = {}
    kinds: dict[str, Modality] = {}
    for index, corpus in enumerate(corpora):
        for column, modality in corpus.columns.items():
            free = (name for name in names if _alike(kinds[name], modality) and names[name][index] is None)
            name = next(free, column if column not in names else f"{corpus.name}_{column}")
            kinds.setdefault(name, modality)
            names.setdefault(name, [None] * len(corpora))[index] = column
    return names


def _alike(one: Modality, other: Modality) -> bool:
    """Return whether values of both may share a column: categories only with the same names."""
    return type(one) is type(other) and (not isinstance(one, Category) or one == other)


def _column(corpus: Corpus, kind: type[Modality]) -> str | None:
    return next((name for name, modality in corpus.columns.items() if isinstance(modality, kind)), None)
