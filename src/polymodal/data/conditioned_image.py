"""Images, and what they are to be generated from: a class, words, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import Column, ColumnsProcessor, ImageColumn, LabelColumn, TextColumn, load_columns
from polymodal.errors import UserError
from polymodal.modalities import Text
from polymodal.modalities.text import Tokenizer
from polymodal.types import Batch, Example


class ConditionedImageProcessor(ColumnsProcessor):
    """Reads examples as `{"image": uint8 array}` with "label" and "text" (captions), whichever the corpus has."""

    def __init__(self, image: ImageColumn, label: LabelColumn | None = None, text: TextColumn | None = None):
        given: dict[str, Column | None] = {"image": image, "label": label, "text": text}
        super().__init__(**{name: column for name, column in given.items() if column is not None})
        self.image = image
        self.label = label
        self.text = text

    @classmethod
    def fit(
        cls, corpus: Corpus, image_size: int, learn: Callable[[Iterable[str]], Tokenizer]
    ) -> ConditionedImageProcessor:
        """Raises UserError when the corpus has neither a label nor texts."""
        with_text = corpus.has_modality(Text)
        if corpus.label is None and not with_text:
            raise UserError(f"The corpus '{corpus.name}' has neither a label nor texts to generate images from.")
        label = LabelColumn.fit(corpus) if corpus.label is not None else None
        text = TextColumn.fit(corpus, learn) if with_text else None
        return cls(ImageColumn.fit(corpus, image_size), label, text)

    @classmethod
    def load(cls, directory: Path, load_tokenizer: Callable[[Path], Tokenizer]) -> ConditionedImageProcessor:
        """The one that `save` wrote. load_tokenizer: reads the run's, where it has one."""
        text = partial(_text_column, directory, load_tokenizer)
        return cls(**load_columns(directory, image=ImageColumn, label=LabelColumn, text=text))  # type: ignore[arg-type]

    def conditions(self, examples: list[Example], generators: list[np.random.Generator] | None = None) -> Batch:
        """Labels and texts of examples; generators: draw a caption of each, in place of the first."""
        given: dict[str, list[Any]] = {}
        if self.label is not None:
            given["label"] = [example["label"] for example in examples]
        if self.text is not None and generators is None:
            given["text"] = [example["text"][0].text for example in examples]
        elif self.text is not None:
            drawn = zip(examples, generators or (), strict=True)
            given["text"] = [self.text.sample_caption(example["text"], generator) for example, generator in drawn]
        return self(**given)


def _text_column(directory: Path, load_tokenizer: Callable[[Path], Tokenizer], **settings: Any) -> TextColumn:
    return TextColumn(load_tokenizer(directory), **settings)
