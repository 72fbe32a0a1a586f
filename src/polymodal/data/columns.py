"""Examples to tensors, column by column: a processor is composed of what reads and collates each modality."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Category, Image, Table, Text, Video
from polymodal.modalities.image import to_square
from polymodal.modalities.table import TableRow, TableRows, collate, column_statistics
from polymodal.modalities.text import Caption, TextTokenizer, Tokenizer, Tokens
from polymodal.modalities.video import Clip
from polymodal.rng import ExampleRNG

MAX_ROWS, DRAWS = 200_000, 8  # that a vocabulary is learned on; captions drawn of each
QUANTILES = 257  # of a number column that are kept
SETTINGS = "processor.json"


class Column:
    """One modality of an example, under the name that methods know it by.

    A recipe declares it unfitted; `fit` and `restore` give the one that reads and collates.
    reads: the modalities that it is read from, any of them.
    """

    reads: ClassVar[tuple[type, ...]] = ()

    def available(self, corpora: Sequence[Corpus]) -> bool:
        """Whether any of the corpora has a modality that it reads."""
        return any(corpus.has_modality(kind) for corpus in corpora for kind in self.reads)

    def check(self, corpus: Corpus) -> None:
        """Raise UserError: the corpus lacks what a required column reads."""
        corpus.column_with(self.reads[0])

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> Column:
        """The column with what it learns from training splits. fitted: the columns that are declared before it."""
        return self

    def load(self, corpus: Corpus, row: int) -> Any:
        """The decoded value. Raises UnreadableExample."""
        raise NotImplementedError

    def __call__(self, values: list[Any], /) -> Any:
        """Values to what methods take: a tensor, or a batch class of the modality."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What it has learned, for JSON."""
        return {}

    def save(self, directory: Path) -> None:
        """Files of its own, beside the settings."""

    def restore(self, settings: Mapping[str, Any], directory: Path) -> Column:
        """The column with these settings and the files in the directory."""
        return self


@dataclass(frozen=True)
class BaseColumn(Column):
    """A column whose fields are all that it needs."""

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> BaseColumn:
        return dataclasses.replace(self, **settings)


class PassThroughColumn(BaseColumn):
    """A list of what is known of an example, from the first column of a modality."""

    def load(self, corpus: Corpus, row: int) -> list[Any]:
        return corpus.value(row, corpus.column_with(self.reads[0]))

    def __call__(self, values: list[Any]) -> Any:
        return values


def reject_unknown_columns(columns: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for a column that a method does not take."""
    taken = list(known)
    for name in columns:
        if name not in taken:
            raise UserError(f"This method does not take {name}; it takes {', '.join(taken)}.")


@dataclass(frozen=True)
class ImageColumn(BaseColumn):
    """Square images.

    size: side in pixels. mean, std: of the red, green and blue values on the scale 0-1, which become 0 and 1.
    They are learned from the training images where they are empty. stretch: whether the whole image is stretched to the
    square; else its centre is cut out.
    """

    reads: ClassVar[tuple[type, ...]] = (Image,)
    size: int
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    stretch: bool = False

    @classmethod
    def of(cls, size: int, colors: tuple[Sequence[float], Sequence[float]] | None) -> ImageColumn:
        """colors: mean and standard deviation of an image encoder's training; learned from the corpus without."""
        return cls(size, *colors) if colors else cls(size)

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> ImageColumn:
        if self.mean:
            return self
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        return to_square(corpus.value(row, corpus.column_with(Image)), self.size, self.stretch)

    def __call__(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """images: arrays from `load`, Pillow images, paths or encoded bytes."""
        return self.normalize(self.pixels(images))

    def pixels(self, images: list[Any]) -> Float[Tensor, "batch 3 size size"]:
        """Values on the scale 0-1."""
        arrays = [image if isinstance(image, np.ndarray) else self._open(image) for image in images]
        return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]).float().div_(255)

    def normalize(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Scale 0-1 to mean 0 and standard deviation 1 over the training images."""
        return normalize_pixels(pixels, self.mean, self.std)

    def shown(self, normalized: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """The way back: values on the scale 0-1, to look at."""
        return denormalize_pixels(normalized, self.mean, self.std)

    def _open(self, image: PILImage.Image | Path | str | bytes) -> np.ndarray:
        return to_square(Image().decode(str(image) if isinstance(image, Path) else image), self.size, self.stretch)


def normalize_pixels(
    pixels: Float[Tensor, "batch 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """Scale 0-1 to mean 0 and standard deviation 1, colour by colour."""
    center, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return torch.addcmul(-center / spread, pixels, 1 / spread)


def denormalize_pixels(
    pixels: Float[Tensor, "batch 3 height width"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "batch 3 height width"]:
    """The way back from `normalised`, within 0 to 1."""
    center, spread = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels * spread + center).clamp(0, 1)


def color_statistics(corpus: Corpus, sample: int = 500) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of red, green and blue on the scale 0-1, over evenly chosen training images.

    Of a corpus with clips, over the first frame of each. Images on white, on black and photographs differ too much
    for one data set's figures to suit all.
    """
    column = corpus.column_with(Video if corpus.has_modality(Video) else Image)
    images = []
    for row in corpus.sample("train", sample):
        with contextlib.suppress(UnreadableExample):  # the loader counts and names them
            value = corpus.value(row, column)
            image = PILImage.fromarray(value.frames[0]) if isinstance(value, Clip) else value
            images.append(to_square(image, 16))
    if not images:
        return [0.5] * 3, [0.5] * 3
    values = np.stack(images).reshape(-1, 3) / 255
    return values.mean(0).round(4).tolist(), values.std(0).clip(min=0.05).round(4).tolist()


@runtime_checkable
class TokenizerSource(Protocol):
    """What learns or loads the tokenizer of a column of texts; configurations of text encoders do."""

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer: ...

    def load_tokenizer(self, directory: Path) -> Tokenizer: ...


@dataclass(frozen=True)
class LearnedTokenizer:
    """A tokenizer that is always learned from the corpus. characters: whether its tokens are single characters."""

    vocab_size: int
    context_length: int
    characters: bool = False

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        learn = TextTokenizer.characters if self.characters else TextTokenizer.train
        return learn(texts, self.vocab_size, self.context_length)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        return TextTokenizer.load(directory, self.context_length)


class TokenizedColumn(Column):
    """A column with a tokenizer."""

    def __init__(self, source: TokenizerSource, tokenizer: Tokenizer | None = None):
        self.source = source
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def save(self, directory: Path) -> None:
        self.tokenizer.save(directory)


class TextColumn(TokenizedColumn):
    """Captions: all of an example's are read, and strings become tokens."""

    reads: ClassVar[tuple[type, ...]] = (Text,)

    def __init__(
        self,
        source: TokenizerSource,
        tokenizer: Tokenizer | None = None,
        language_shares: Mapping[str, float] | None = None,
    ):
        """tokenizer: the fitted one. language_shares: how often training draws a caption in each language."""
        super().__init__(source, tokenizer)
        self.text = Text(dict(language_shares or {}))

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TextColumn:
        """Learn a tokenizer from captions of the training splits; the shares of languages are those of the first."""
        texts, shares = [], []
        for corpus in [corpus for corpus in corpora if corpus.has_modality(Text)] or corpora:
            column = corpus.column_with(Text)
            modality = corpus.columns[column]
            assert isinstance(modality, Text)
            shares.append(modality.language_shares)
            texts.append(_sample_captions(corpus.raw_values(corpus.sample("train", MAX_ROWS), column), modality))
        return type(self)(self.source, self.source.tokenizer(itertools.chain(*texts)), shares[0])

    def restore(self, settings: Mapping[str, Any], directory: Path) -> TextColumn:
        return type(self)(self.source, self.source.load_tokenizer(directory), **settings)

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return corpus.value(row, corpus.column_with(Text))

    def __call__(self, texts: list[str]) -> Tokens:
        return self.tokenizer(texts)

    def sample_caption(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """One caption at random, languages by the corpus's shares."""
        return self.text.choose(captions, rng)

    def settings(self) -> dict[str, Any]:
        return {"language_shares": dict(self.text.language_shares)}

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """The texts of token numbers, which have no marks."""
        return self.tokenizer.decode(Tokens.of([list(row) or [0] for row in rows]))


def _sample_captions(rows: list[Any], modality: Text) -> Iterator[str]:
    """Captions as often as training will draw them, or rare languages would take the vocabulary of frequent ones."""
    rng = np.random.default_rng(0)
    for row in rows:
        with contextlib.suppress(UnreadableExample):
            captions = modality.decode(row)
            yield from (modality.choose(captions, rng) for _ in captions[:DRAWS])


@dataclass(frozen=True)
class TableColumn(BaseColumn):
    """Rows of a table, numbers at mean 0 and standard deviation 1 over the training rows.

    numeric: names of the number columns. categorical: name -> the values that it may have. quantiles: for each number
    column, standardised values of the training rows at equally spaced ranks. shares: for each category column, how
    often each value occurs in them.
    """

    reads = (Table,)
    numeric: Sequence[str] = ()
    categorical: Mapping[str, Sequence[str]] = field(default_factory=dict)
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    quantiles: Sequence[Sequence[float]] = ()
    shares: Sequence[Sequence[float]] = ()

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TableColumn:
        """Raises UserError when no row of the training split can be read."""
        corpus = corpora[0]
        column = corpus.column_with(Table)
        table = corpus.columns[column]
        assert isinstance(table, Table)
        rows = []
        for raw in corpus.raw_values(corpus.sample("train", MAX_ROWS), column):
            with contextlib.suppress(UnreadableExample):
                rows.append(table.decode(raw))
        if not rows:
            raise UserError(f"The corpus '{corpus.name}' has no readable table row in its training split.")
        mean, std = column_statistics(rows)
        numbers = ((np.stack([row.numbers for row in rows]) - mean) / std).T
        known = [values[~np.isnan(values)] for values in numbers]
        ranks = (np.arange(QUANTILES) + 0.5) / QUANTILES
        places = np.stack([row.categories for row in rows]).T
        counts = [
            np.bincount(p[p >= 0], minlength=len(v)) for p, v in zip(places, table.categorical.values(), strict=True)
        ]
        return TableColumn(
            list(table.numeric),
            {name: list(values) for name, values in table.categorical.items()},
            mean.tolist(),
            std.tolist(),
            [np.quantile(v, ranks, method="nearest").tolist() if len(v) else [0.0] * QUANTILES for v in known],
            [(count / max(count.sum(), 1)).tolist() for count in counts],
        )

    @property
    def levels(self) -> list[int]:
        """How many values each category column may have."""
        return [len(values) for values in self.categorical.values()]

    @property
    def modes(self) -> list[int]:
        """The most frequent value of each category column."""
        return [int(np.argmax(shares)) for shares in self.shares]

    def load(self, corpus: Corpus, row: int) -> TableRow:
        return corpus.value(row, corpus.column_with(Table))

    def __call__(self, rows: list[TableRow]) -> TableRows:
        return collate(rows, np.array(self.mean), np.array(self.std))

    def random_rows(self, example_rng: ExampleRNG) -> TableRows:
        """A row for each example, every cell drawn from its column's distribution over the training rows."""
        batch = len(example_rng.seeds)
        numbers = torch.empty(batch, len(self.numeric))
        for column, values in enumerate(self.quantiles):
            numbers[:, column] = torch.tensor(values)[(example_rng.uniform() * len(values)).long()]
        places = torch.empty(batch, len(self.categorical), dtype=torch.long)
        for column, shares in enumerate(self.shares):
            ends = torch.tensor(shares).cumsum(0)[:-1]
            places[:, column] = torch.searchsorted(ends, example_rng.uniform(), right=True)
        return TableRows(numbers, places)


@dataclass(frozen=True)
class LabelColumn(BaseColumn):
    """The corpus's label. names: of the classes, in the order of their numbers."""

    reads = (Category,)
    names: Sequence[str] = ()

    def available(self, corpora: Sequence[Corpus]) -> bool:
        return bool(corpora[0].label)

    def check(self, corpus: Corpus) -> None:
        raise UserError(f"The corpus '{corpus.name}' has no label to learn to classify by.")

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> LabelColumn:
        corpus = corpora[0]
        modality = corpus.columns[corpus.label] if corpus.label is not None else None
        if not isinstance(modality, Category):
            self.check(corpus)
        assert isinstance(modality, Category)
        return LabelColumn(list(modality.names))

    def load(self, corpus: Corpus, row: int) -> int:
        assert corpus.label is not None
        return corpus.value(row, corpus.label)

    def __call__(self, labels: list[int]) -> Int[Tensor, " batch"]:
        return torch.tensor(labels)


def label_of(processor: Any) -> LabelColumn | None:
    """The column of the classes that a method takes; None where it takes none."""
    return getattr(processor, "label", None)
