"""Referring expressions with the boxes of the objects that they refer to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from PIL import Image as PILImage

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import MAX_ROWS, BaseColumn, Column
from polymodal.data.columns.text import TextColumn
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Expressions, Image, Text
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.text import Caption
from polymodal.rng import ExampleRNG

XYXY = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the image


class ReferringExpression(NamedTuple):
    """An expression and the boxes of all objects that it refers to."""

    text: str
    boxes: tuple[XYXY, ...]
    clauses: int


class ExpressionsColumn(BaseColumn):
    """Referring expressions; boxes are fractions of the image."""

    reads = (Expressions,)

    def load(self, corpus: Corpus, row: int) -> list[ReferringExpression]:
        image: PILImage.Image = corpus.value(row, corpus.column_with(Image))
        sides = (image.width, image.height) * 2
        expressions = corpus.value(row, corpus.column_with(Expressions))
        if not expressions:
            raise UnreadableExample("there is no expression")
        return [
            ReferringExpression(one.text, tuple(_fractions(box, sides) for box in one.boxes), one.clauses)
            for one in expressions
        ]

    def __call__(self, sets: list[tuple[XYXY, ...]]) -> PaddedBoxes:
        return PaddedBoxes.of(sets)

    def sample(
        self, sets: Sequence[list[ReferringExpression]], example_rng: ExampleRNG, single: bool
    ) -> list[ReferringExpression]:
        """Sample an expression of each set. single: of those for one object, where there are any."""
        fitting = [[one for one in given if len(one.boxes) == 1 or not single] or given for given in sets]
        return [some[int(rng.integers(len(some)))] for some, rng in zip(fitting, example_rng.generators, strict=True)]


def check_single_objects(corpus: Corpus) -> None:
    """Raise UserError where a sample of the training split has expressions, and none of them is for a single object."""
    if not corpus.has_modality(Expressions):
        return
    column, has_expression = corpus.column_with(Expressions), False
    for row in corpus.sample("train", MAX_ROWS).tolist():
        with contextlib.suppress(UnreadableExample):
            for expression in corpus.value(row, column) or ():
                if len(expression.boxes) == 1:
                    return
                has_expression = True
    if has_expression:
        raise UserError(
            f"No expression of '{corpus.name}' is for one object; let --num-queries be the maximum of boxes."
        )


def _fractions(box: tuple[float, ...], sides: tuple[int, ...]) -> XYXY:
    left, top, right, bottom = (min(max(edge / side, 0.0), 1.0) for edge, side in zip(box, sides, strict=True))
    return left, top, right, bottom


class CaptionsOrExpressionsColumn(TextColumn):
    """Captions; the referring expressions of a corpus without captions."""

    reads: ClassVar[tuple[type, ...]] = (Text, Expressions)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> CaptionsOrExpressionsColumn:
        """Learn a tokenizer from captions and expressions of the training split."""
        corpus = corpora[0]
        sample = corpus.sample("train", MAX_ROWS)
        columns = [name for name, kind in corpus.columns.items() if isinstance(kind, Text | Expressions)]
        texts = [
            expression.text
            for column in columns
            for raw in corpus.raw_values(sample, column)
            for expression in _decoded(corpus.columns[column], raw)
        ]
        return type(self)(self.source, self.source.tokenizer(texts))

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        if corpus.has_modality(Text):
            return super().load(corpus, row)
        return [Caption(one.text) for one in corpus.value(row, corpus.column_with(Expressions))]


def _decoded(modality: Any, raw: Any) -> Iterable[Any]:
    with contextlib.suppress(UnreadableExample):
        return modality.decode(raw) if raw is not None else ()
    return ()
