"""Columns of images in tiles and of what is said about them: captions, questions with answers, boxes, documents."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PILImage
from torch import Tensor

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns import (
    BaseColumn,
    Column,
    PassThroughColumn,
    TextColumn,
    color_statistics,
    denormalize_pixels,
    normalize_pixels,
)
from polymodal.data.processor import Sparse
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Interleaved, Preferences, Questions, Regions, Text
from polymodal.modalities.image import check_tiles, patchify, tiles, to_rgb
from polymodal.modalities.region import Region
from polymodal.modalities.text import Caption, Tokenizer, Tokens, bos_eos

IMAGE, DOCUMENT = "image", "document"
DESCRIBE = "Describe the picture."
SPECIAL_TOKENS = IMAGE_START, IMAGE_END, USER, ASSISTANT = "<image>", "</image>", "<user>", "<assistant>"


@dataclass(frozen=True)
class MarkedTokenizer:
    """The tokenizer of a language model, learned with the marks of conversations.

    source: a configuration with `tokenizer(texts, special_tokens)` and `load_tokenizer(directory)`.
    """

    source: Any

    def tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        return self.source.tokenizer(texts, SPECIAL_TOKENS)

    def load_tokenizer(self, directory: Path) -> Tokenizer:
        return self.source.load_tokenizer(directory)


def conversation_columns(image: TiledImageColumn, source: Any) -> dict[str, Sparse]:
    """What is read of images and what is said of them, whatever of that a row has. source: see `MarkedTokenizer`."""
    columns: dict[str, Column] = {
        IMAGE: image,
        "text": CaptionsColumn(MarkedTokenizer(source)),
        DOCUMENT: DocumentColumn(image),
        "questions": QuestionsColumn(),
        "regions": ConversationRegionsColumn(),
        "preferences": PreferencesColumn(),
    }
    return {name: Sparse(column) for name, column in columns.items()}


class Turn(NamedTuple):
    """What is said of an image, or by itself. question: empty for a caption or a text. answer: what is learned."""

    answer: str
    question: str = ""


@dataclass(frozen=True)
class TiledImageColumn(BaseColumn):
    """Whole images of any shape, cut into tiles when a batch is made.

    tile_size: side in pixels. token_size: side of the square of one token. max_tiles: that an image is cut
    into where nothing else is said. largest: longest side in pixels that is kept of an image. mean, std: of red, green
    and blue on the scale 0-1, which become 0 and 1.
    """

    reads = (Image,)
    tile_size: int
    token_size: int
    max_tiles: int
    largest: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_tiles(self.token_size, self.tile_size)

    @property
    def tokens_per_tile(self) -> int:
        """Tokens of a tile."""
        return (self.tile_size // self.token_size) ** 2

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> TiledImageColumn:
        """With the mean and spread of the first corpus's colors, where it has images."""
        if not corpora[0].has_modality(Image):
            return self
        mean, std = color_statistics(corpora[0])
        return dataclasses.replace(self, mean=mean, std=std)

    def load(self, corpus: Corpus, row: int) -> np.ndarray:
        return self.open(corpus.value(row, corpus.column_with(Image)))

    def open(self, image: PILImage.Image | np.ndarray | Path | str | bytes) -> np.ndarray:
        """uint8 height x width x 3, made smaller where it is larger than any tiling needs."""
        if isinstance(image, np.ndarray):
            return image
        opened = Image().decode(str(image) if isinstance(image, Path) else image)
        opened.draft("RGB", (self.largest, self.largest))
        opened = to_rgb(opened)
        opened.thumbnail((self.largest, self.largest), PILImage.Resampling.BICUBIC)
        return np.asarray(opened)

    def patchify_tiles(self, image: np.ndarray, max_tiles: int | None) -> Float[Tensor, "places values"]:
        """The normalised pixels of every cell, tile by tile."""
        cut = tiles(image, self.tile_size, self.max_tiles if max_tiles is None else max_tiles)
        pixels = torch.from_numpy(cut.copy()).permute(0, 3, 1, 2).float().div_(255)
        return patchify(normalize_pixels(pixels, self.mean, self.std), self.token_size).flatten(0, 1)

    def __call__(self, images: list[Any]) -> list[np.ndarray]:
        return [self.open(image) for image in images]

    def shown(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Normalised pixels on the scale 0-1, to look at."""
        return denormalize_pixels(pixels, self.mean, self.std)


class CaptionsColumn(TextColumn):
    """All captions of an example in its main language, from every text column of the corpus."""

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> CaptionsColumn:
        """Learn a tokenizer on texts and questions of all corpora."""
        texts = (text for corpus in corpora for text in _texts(corpus))
        return CaptionsColumn(self.source, self.source.tokenizer(texts))

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return all_captions(corpus, row)

    def texts(self, rows: Sequence[list[int]]) -> list[str]:
        """What was written, without marks."""
        _, end = bos_eos(self.tokenizer)
        return [text.strip() for text in self.tokenizer.decode(Tokens.of([row or [end] for row in rows]))]


def all_captions(corpus: Corpus, row: int) -> list[Caption]:
    """In the main language of every text column. Raises UnreadableExample when there is none."""
    found: list[Caption] = []
    for name, modality in corpus.columns.items():
        if isinstance(modality, Text) and corpus.raw(row, name) is not None:
            found += modality.in_main_language(corpus.value(row, name))
    if not found:
        raise UnreadableExample("there is no text")
    return found


class QuestionsColumn(PassThroughColumn):
    """Questions about an example, with answers."""

    reads = (Questions,)


class PreferencesColumn(PassThroughColumn):
    """Pairs of answers to questions about an example, the better one first."""

    reads = (Preferences,)


class ConversationRegionsColumn(PassThroughColumn):
    """Objects of an example's image, with boxes in thousandths of its sides."""

    reads = (Regions,)

    def load(self, corpus: Corpus, row: int) -> list[Region]:
        width, height = corpus.value(row, corpus.column_with(Image)).size
        scale = (1000 / width, 1000 / height) * 2
        return [
            region._replace(box=tuple(round(edge * by) for edge, by in zip(region.box, scale, strict=True)))
            for region in super().load(corpus, row)
        ]


@dataclass(frozen=True)
class DocumentColumn(Column):
    """Texts and images of a page in their order. image: the column of images, for their size."""

    reads = (Interleaved,)

    image: TiledImageColumn

    def load(self, corpus: Corpus, row: int) -> list[str | np.ndarray]:
        parts: list[str | np.ndarray] = []
        for piece in corpus.value(row, corpus.column_with(Interleaved)):
            if piece.figure is not None:
                parts.append(self.image.open(piece.figure))
            elif parts and isinstance(parts[-1], str):
                parts[-1] += f"\n{piece.text}"
            else:
                parts.append(piece.text)
        return parts

    def __call__(self, documents: list[Any]) -> list[Any]:
        return documents


def _texts(corpus: Corpus, most: int = 20_000) -> Iterator[str]:
    """Captions, questions and answers of training examples."""
    kinds = {type(modality) for modality in corpus.columns.values()}
    asks = Questions in kinds
    for row in corpus.sample("train", most).tolist():
        with contextlib.suppress(UnreadableExample):
            if Interleaved in kinds:
                yield from (
                    piece["text"] for piece in corpus.raw(row, corpus.column_with(Interleaved)) if piece["text"]
                )
            yield from (caption.text for caption in all_captions(corpus, row))
            if asks:
                yield from (text for question in QuestionsColumn().load(corpus, row) for text in question[:2])
