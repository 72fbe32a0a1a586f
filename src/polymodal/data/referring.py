"""Images, captions, and expressions that refer to objects, to tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as PILImage

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import MOST_ROWS, BaseColumn, ColumnsProcessor, ImageColumn, TextColumn, load_columns
from polymodal.errors import UnreadableExample
from polymodal.modalities import Expressions, Image, Text
from polymodal.modalities.boxes import PaddedBoxes
from polymodal.modalities.text import Caption, Tokenizer
from polymodal.types import Example

XYXY = tuple[float, float, float, float]  # left, top, right, bottom in shares of the image


class Referred(NamedTuple):
    """An expression, and the boxes of all objects that it means."""

    text: str
    boxes: tuple[XYXY, ...]
    clauses: int


class ExpressionsColumn(BaseColumn):
    """Expressions with their boxes in shares of the image."""

    def load(self, corpus: Corpus, row: int) -> list[Referred]:
        image: PILImage.Image = corpus.value(row, corpus.column_with(Image))
        sides = (image.width, image.height) * 2
        said = corpus.value(row, corpus.column_with(Expressions))
        if not said:
            raise UnreadableExample("there is no expression")
        return [Referred(one.text, tuple(_shares(box, sides) for box in one.boxes), one.clauses) for one in said]

    def __call__(self, sets: list[tuple[XYXY, ...]]) -> PaddedBoxes:
        return PaddedBoxes.of(sets)


def _shares(box: tuple[float, ...], sides: tuple[int, ...]) -> XYXY:
    left, top, right, bottom = (min(max(edge / side, 0.0), 1.0) for edge, side in zip(box, sides, strict=True))
    return left, top, right, bottom


class ReferringProcessor(ColumnsProcessor):
    """Reads examples as `{"image", "text": captions, "expressions": [Referred, ...]}`; the whole image is stretched.

    A corpus without captions has its expressions in their place.
    """

    def __init__(self, image: ImageColumn, text: TextColumn):
        self.expressions = ExpressionsColumn()
        super().__init__(image=image, text=text, expressions=self.expressions)
        self.image = image
        self.text = text

    @classmethod
    def fit(cls, corpus: Corpus, image_size: int, learn: Callable[[Iterable[str]], Tokenizer]) -> ReferringProcessor:
        """Learn a tokenizer from captions and expressions of the training split, and the colours of its images."""
        sample = corpus.sample("train", MOST_ROWS)
        columns = [name for name, kind in corpus.columns.items() if isinstance(kind, Text | Expressions)]
        corpus.column_with(Expressions)
        texts = [
            said.text
            for column in columns
            for raw in corpus.raw_values(sample, column)
            for said in _decoded(corpus.columns[column], raw)
        ]
        return cls(ImageColumn.fit(corpus, image_size, stretch=True), TextColumn(learn(texts)))

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer) -> ReferringProcessor:
        """The one that `save` wrote. tokenizer: the run's."""
        return cls(**load_columns(directory, image=ImageColumn, text=partial(TextColumn, tokenizer)))  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Tokenizer:
        return self.text.tokenizer

    def load_example(self, corpus: Corpus, row: int) -> Example:
        said = self.expressions.load(corpus, row)
        captioned = corpus.has_modality(Text)
        captions = self.text.load(corpus, row) if captioned else [Caption(one.text) for one in said]
        return {"image": self.image.load(corpus, row), "text": captions, "expressions": said}


def _decoded(modality: Any, raw: Any) -> Iterable[Any]:
    with contextlib.suppress(UnreadableExample):
        return modality.decode(raw) if raw is not None else ()
    return ()
