"""Images and what is said about them, as sequences for a language model: captions, questions with answers, texts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    ColumnsProcessor,
    PassThroughColumn,
    TextColumn,
    color_statistics,
    denormalize_pixels,
    load_columns,
    normalize_pixels,
    read_available_columns,
    reject_unknown_columns,
)
from polymodal.data.sequence import TEXT, PackedSequences, Span, pack, pad_sequences
from polymodal.data.sequence import SpanSequence as Segments
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image, Interleaved, Preferences, Questions, Regions, Text
from polymodal.modalities.image import check_tiles, patchify, tiles, to_rgb
from polymodal.modalities.region import Region
from polymodal.modalities.text import Caption, Tokenizer, Tokens, bos_eos, encode_without_special_tokens
from polymodal.types import Batch, Example

IMAGE = "image"
DESCRIBE = "Describe the picture."
SPECIAL_TOKENS = IMAGE_START, IMAGE_END, USER, ASSISTANT = "<image>", "</image>", "<user>", "<assistant>"


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

    def load(self, corpus: Corpus, row: int) -> list[Caption]:
        return all_captions(corpus, row)


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

    kind = Questions


class PreferencesColumn(PassThroughColumn):
    """Pairs of answers to questions about an example, the better one first."""

    kind = Preferences


class RegionsColumn(PassThroughColumn):
    """Objects of an example's image, with boxes in thousandths of its sides."""

    kind = Regions

    def load(self, corpus: Corpus, row: int) -> list[Region]:
        width, height = corpus.value(row, corpus.column_with(Image)).size
        scale = (1000 / width, 1000 / height) * 2
        return [
            region._replace(box=tuple(round(edge * by) for edge, by in zip(region.box, scale, strict=True)))
            for region in super().load(corpus, row)
        ]


@dataclass(frozen=True)
class DocumentColumn:
    """Texts and images of a page in their order."""

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

    def settings(self) -> dict[str, Any]:
        return {}

    def save(self, directory: Path) -> None:
        """Nothing that the image's column does not save."""


DOCUMENT = "document"
KINDS: dict[str, tuple[type, ...]] = {
    IMAGE: (Image,),
    DOCUMENT: (Interleaved,),
    "text": (Text,),
    "questions": (Questions,),
    "regions": (Regions,),
    "preferences": (Preferences,),
}


class ConversationProcessor(ColumnsProcessor):
    """Reads images and what is said of them, whatever of that a corpus has, and makes sequences of them."""

    def __init__(self, image: TiledImageColumn, text: CaptionsColumn, context: int):
        super().__init__(
            image=image,
            text=text,
            document=DocumentColumn(image),
            questions=QuestionsColumn(),
            regions=RegionsColumn(),
            preferences=PreferencesColumn(),
        )
        self.image = image
        self.context = context
        self.tokenizer = text.tokenizer
        self.start, self.end = bos_eos(self.tokenizer)
        self.marks = dict(
            zip(SPECIAL_TOKENS, encode_without_special_tokens(self.tokenizer, list(SPECIAL_TOKENS)), strict=True)
        )

    @classmethod
    def fit(
        cls,
        corpora: Sequence[Corpus],
        learn: Callable[[Iterable[str]], Tokenizer],
        image: TiledImageColumn,
        context: int,
    ) -> ConversationProcessor:
        """Learn a tokenizer on texts and questions of all corpora, and colours on the images of the first.

        image: what is known of the images beforehand.
        """
        column = image
        if corpora[0].has_modality(Image):
            mean, std = color_statistics(corpora[0])
            column = dataclasses.replace(image, mean=mean, std=std)
        texts = (text for corpus in corpora for text in _texts(corpus))
        return cls(column, CaptionsColumn(learn(texts)), context)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer, context: int) -> ConversationProcessor:
        """The one that `save` wrote."""

        def captions(**settings: Any) -> CaptionsColumn:
            return CaptionsColumn(tokenizer, **settings)

        columns = load_columns(directory, image=TiledImageColumn, text=captions)
        return cls(**columns, context=context)  # type: ignore[arg-type]

    def load_example(self, corpus: Corpus, row: int) -> Example:
        return read_available_columns(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        """For `generate_text`: prompts of images, questions, or both, one a row; `begun` is how the answer begins.

        With `answer`, whole sequences in whose answers the loss is asked for; answers alone are texts. `document` alone
        gives `sequences` of texts and images in any order, `text` alone prompts of texts that an image follows.
        """
        reject_unknown_columns(columns, ("answer", IMAGE, "question", "begun", DOCUMENT, "text"))
        if DOCUMENT in columns:
            return {"sequences": pad_sequences([self.document(self._opened(parts)) for parts in columns[DOCUMENT]])}
        if "text" in columns:
            return {"prompts": pad_sequences([self._before_image(text) for text in columns["text"]], pad_left=True)}
        count = len(next(iter(columns.values())))
        nothing: list[Any] = [None] * count
        images = self.image(columns[IMAGE]) if IMAGE in columns else nothing
        questions = columns.get("question", [""] * count)
        if "answer" in columns:
            said = [
                self.sequence(image, [Turn(answer, question)])
                for image, question, answer in zip(images, questions, columns["answer"], strict=True)
            ]
            return {"sequences": pad_sequences(said)}
        begun = columns.get("begun", [""] * count)
        asked = [self.prompt(*one) for one in zip(images, questions, begun, strict=True)]
        return {"prompts": pad_sequences(asked, pad_left=True)}

    def prompt(self, image: np.ndarray | None, question: str, begun: str = "") -> Segments:
        """Start mark, the image between marks, the question, and how the answer begins; the model goes on.

        A long question is cut.
        """
        opening = self._opening(image, None)
        asked = opening + self._ask(question, self.context - 1 - sum(map(len, opening)))
        room = self.context - 1 - sum(map(len, asked))
        return [*asked, _text(encode_without_special_tokens(self.tokenizer, [begun])[0][:room])] if begun else asked

    def sequence(self, image: np.ndarray | None, said: Sequence[Turn], max_tiles: int | None = None) -> Segments:
        """An image and what is said of it, in turn; what does not fit the context any more is left out or cut.

        The loss is asked for in the answers and their end marks.
        """
        segments = self._opening(image, max_tiles)
        for number, (answer, question) in enumerate(said):
            answered = [*encode_without_special_tokens(self.tokenizer, [answer])[0], self.end]
            left = self.context - sum(map(len, segments))
            if number and left < len(answered) + len(question):  # a character is at most a token
                break
            segments += self._ask(question, left - min(len(answered), left // 2))
            segments.append(_text(answered[: self.context - sum(map(len, segments))], predicted=True))
        return segments

    def document(self, parts: Sequence[str | np.ndarray]) -> Segments:
        """Texts and images in this order between start and end mark; the loss asks for all of them.

        What does not fit the context any more is left out, of a text its end.
        """
        segments, room = [_text([self.start])], self.context - 2
        for part in parts:
            if isinstance(part, str):
                piece = [_text(encode_without_special_tokens(self.tokenizer, [part])[0][:room], predicted=True)]
            else:
                cells = Span(IMAGE, self.image.patchify_tiles(part, None))
                piece = [_text(self.marks[IMAGE_START], True), cells, _text(self.marks[IMAGE_END], True)]
            length = sum(map(len, piece))
            if length > room:
                break
            segments, room = segments + piece, room - length
        return [*segments, _text([self.end], predicted=True)]

    def pack(self, sequences: Sequence[Segments]) -> PackedSequences:
        """As many as fit share a row of the model's context."""
        return pack(sequences, self.context)

    def _opened(self, parts: Sequence[Any]) -> list[str | np.ndarray]:
        return [part if isinstance(part, str) else self.image.open(part) for part in parts]

    def _before_image(self, text: str) -> Segments:
        room = self.context - self.image.tokens_per_tile - 4
        ids = encode_without_special_tokens(self.tokenizer, [text])[0][:room]
        return [_text([self.start, *ids, *self.marks[IMAGE_START]])]

    def _opening(self, image: np.ndarray | None, max_tiles: int | None) -> Segments:
        if image is None:
            return [_text([self.start])]
        cells = self.image.patchify_tiles(image, max_tiles)
        if len(cells) + 16 > self.context:
            raise UserError(f"An image of {len(cells)} tokens leaves no room in a context of {self.context}.")
        before, after = [self.start, *self.marks[IMAGE_START]], self.marks[IMAGE_END]
        return [_text(before), Span(IMAGE, cells, predicted=False), _text(after)]

    def _ask(self, question: str, room: int) -> Segments:
        """The question between its marks, in at most so many places; nothing for none."""
        if not question:
            return []
        asked = [*self.marks[USER], *encode_without_special_tokens(self.tokenizer, [question])[0]]
        return [_text([*asked[: room - len(self.marks[ASSISTANT])], *self.marks[ASSISTANT]])]

    def texts(self, rows: list[list[int]]) -> list[str]:
        """What was written, without marks."""
        return [text.strip() for text in self.tokenizer.decode(Tokens.of([row or [self.end] for row in rows]))]


def _text(ids: list[int], predicted: bool = False) -> Span:
    return Span(TEXT, torch.tensor(ids, dtype=torch.long), predicted)


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
