"""Pictures and what is said about them, as sequences for a language model: captions, questions with answers, texts."""

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
    AsItIsColumn,
    ColumnsProcessor,
    PlainColumn,
    TextColumn,
    colour_statistics,
    denormalised,
    load_columns,
    normalised,
    read_there,
    refuse_others,
)
from polymodal.data.sequence import TEXT, PackedSequences, Segment, beside, pack
from polymodal.data.sequence import Sequence as Segments
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image, Interleaved, Preferences, Questions, Regions, Text
from polymodal.modalities.image import check_tiles, patchify, tiles, to_rgb
from polymodal.modalities.region import Region
from polymodal.modalities.text import Caption, Tokenizer, Tokens, start_and_end, unmarked
from polymodal.types import Batch, Example

IMAGE = "image"
DESCRIBE = "Describe the picture."
MARKS = PICTURE, PICTURE_END, USER, ASSISTANT = "<image>", "</image>", "<user>", "<assistant>"


class Saying(NamedTuple):
    """What is said of a picture, or by itself. question: empty for a caption or a text. answer: what is learned."""

    answer: str
    question: str = ""


@dataclass(frozen=True)
class PictureColumn(PlainColumn):
    """Whole pictures of any shape, cut into tiles when a batch is made.

    size: side of a tile in pixels. cell: side of the square that becomes one token. most_tiles: that a picture is cut
    into where nothing else is said. largest: longest side in pixels that is kept of a picture. mean, std: of red, green
    and blue on the scale 0-1, which become 0 and 1.
    """

    size: int
    cell: int
    most_tiles: int
    largest: int
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_tiles(self.cell, self.size)

    @property
    def cells(self) -> int:
        """Tokens of a tile."""
        return (self.size // self.cell) ** 2

    def read(self, corpus: Corpus, row: int) -> np.ndarray:
        return self.open(corpus.value(row, corpus.column_of(Image)))

    def open(self, image: PILImage.Image | np.ndarray | Path | str | bytes) -> np.ndarray:
        """uint8 height x width x 3, made smaller where it is larger than any tiling needs."""
        if isinstance(image, np.ndarray):
            return image
        picture = Image().decode(str(image) if isinstance(image, Path) else image)
        picture.draft("RGB", (self.largest, self.largest))
        picture = to_rgb(picture)
        picture.thumbnail((self.largest, self.largest), PILImage.Resampling.BICUBIC)
        return np.asarray(picture)

    def cells_of(self, picture: np.ndarray, most_tiles: int | None) -> Float[Tensor, "places values"]:
        """The normalised pixels of every cell, tile by tile."""
        cut = tiles(picture, self.size, self.most_tiles if most_tiles is None else most_tiles)
        pixels = torch.from_numpy(cut.copy()).permute(0, 3, 1, 2).float().div_(255)
        return patchify(normalised(pixels, self.mean, self.std), self.cell).flatten(0, 1)

    def __call__(self, images: list[Any]) -> list[np.ndarray]:
        return [self.open(image) for image in images]

    def shown(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 3 size size"]:
        """Normalised pixels on the scale 0-1, to look at."""
        return denormalised(pixels, self.mean, self.std)


class CaptionsColumn(TextColumn):
    """All captions of an example in its main language, from every text column of the corpus."""

    def read(self, corpus: Corpus, row: int) -> list[Caption]:
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


class QuestionsColumn(AsItIsColumn):
    """Questions about an example, with answers."""

    kind = Questions


class PreferencesColumn(AsItIsColumn):
    """Pairs of answers to questions about an example, the better one first."""

    kind = Preferences


class RegionsColumn(AsItIsColumn):
    """Objects of an example's picture, with boxes in thousandths of its sides."""

    kind = Regions

    def read(self, corpus: Corpus, row: int) -> list[Region]:
        width, height = corpus.value(row, corpus.column_of(Image)).size
        scale = (1000 / width, 1000 / height) * 2
        return [
            region._replace(box=tuple(round(edge * by) for edge, by in zip(region.box, scale, strict=True)))
            for region in super().read(corpus, row)
        ]


@dataclass(frozen=True)
class DocumentColumn:
    """Texts and pictures of a page in their order."""

    image: PictureColumn

    def read(self, corpus: Corpus, row: int) -> list[str | np.ndarray]:
        parts: list[str | np.ndarray] = []
        for piece in corpus.value(row, corpus.column_of(Interleaved)):
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
        """Nothing that the picture's column does not save."""


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
    """Reads pictures and what is said of them, whatever of that a corpus has, and makes sequences of them."""

    def __init__(self, image: PictureColumn, text: CaptionsColumn, context: int):
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
        self.start, self.end = start_and_end(self.tokenizer)
        self.marks = dict(zip(MARKS, unmarked(self.tokenizer, list(MARKS)), strict=True))

    @classmethod
    def fit(
        cls,
        corpora: Sequence[Corpus],
        learn: Callable[[Iterable[str]], Tokenizer],
        image: PictureColumn,
        context: int,
    ) -> ConversationProcessor:
        """Learn a tokenizer on texts and questions of all corpora, and colours on the pictures of the first.

        image: what is known of the pictures beforehand.
        """
        column = image
        if corpora[0].holds(Image):
            mean, std = colour_statistics(corpora[0])
            column = dataclasses.replace(image, mean=mean, std=std)
        texts = (text for corpus in corpora for text in _texts(corpus))
        return cls(column, CaptionsColumn(learn(texts)), context)

    @classmethod
    def load(cls, directory: Path, tokenizer: Tokenizer, context: int) -> ConversationProcessor:
        """The one that `save` wrote."""

        def captions(**settings: Any) -> CaptionsColumn:
            return CaptionsColumn(tokenizer, **settings)

        columns = load_columns(directory, image=PictureColumn, text=captions)
        return cls(**columns, context=context)  # type: ignore[arg-type]

    def read(self, corpus: Corpus, row: int) -> Example:
        return read_there(self.columns, KINDS, corpus, row)

    def __call__(self, **columns: list[Any]) -> Batch:
        """For `write`: prompts of pictures, questions, or both, one a row; `begun` is how the answer begins.

        With `answer`, whole sequences in whose answers the loss is asked for; answers alone are texts. `document` alone
        gives `sequences` of texts and pictures in any order, `text` alone prompts of texts that a picture follows.
        """
        refuse_others(columns, ("answer", IMAGE, "question", "begun", DOCUMENT, "text"))
        if DOCUMENT in columns:
            return {"sequences": beside([self.document(self._opened(parts)) for parts in columns[DOCUMENT]])}
        if "text" in columns:
            return {"prompts": beside([self._before_picture(text) for text in columns["text"]], to_the_right=True)}
        count = len(next(iter(columns.values())))
        nothing: list[Any] = [None] * count
        pictures = self.image(columns[IMAGE]) if IMAGE in columns else nothing
        questions = columns.get("question", [""] * count)
        if "answer" in columns:
            said = [
                self.sequence(picture, [Saying(answer, question)])
                for picture, question, answer in zip(pictures, questions, columns["answer"], strict=True)
            ]
            return {"sequences": beside(said)}
        begun = columns.get("begun", [""] * count)
        asked = [self.prompt(*one) for one in zip(pictures, questions, begun, strict=True)]
        return {"prompts": beside(asked, to_the_right=True)}

    def prompt(self, picture: np.ndarray | None, question: str, begun: str = "") -> Segments:
        """Start mark, the picture between marks, the question, and how the answer begins; the model goes on.

        A long question is cut.
        """
        opening = self._opening(picture, None)
        asked = opening + self._ask(question, self.context - 1 - sum(map(len, opening)))
        room = self.context - 1 - sum(map(len, asked))
        return [*asked, _text(unmarked(self.tokenizer, [begun])[0][:room])] if begun else asked

    def sequence(self, picture: np.ndarray | None, said: Sequence[Saying], most_tiles: int | None = None) -> Segments:
        """A picture and what is said of it, in turn; what does not fit the context any more is left out or cut.

        The loss is asked for in the answers and their end marks.
        """
        segments = self._opening(picture, most_tiles)
        for number, (answer, question) in enumerate(said):
            answered = [*unmarked(self.tokenizer, [answer])[0], self.end]
            left = self.context - sum(map(len, segments))
            if number and left < len(answered) + len(question):  # a character is at most a token
                break
            segments += self._ask(question, left - min(len(answered), left // 2))
            segments.append(_text(answered[: self.context - sum(map(len, segments))], predicted=True))
        return segments

    def document(self, parts: Sequence[str | np.ndarray]) -> Segments:
        """Texts and pictures in this order between start and end mark; the loss asks for all of them.

        What does not fit the context any more is left out, of a text its end.
        """
        segments, room = [_text([self.start])], self.context - 2
        for part in parts:
            if isinstance(part, str):
                piece = [_text(unmarked(self.tokenizer, [part])[0][:room], predicted=True)]
            else:
                cells = Segment(IMAGE, self.image.cells_of(part, None))
                piece = [_text(self.marks[PICTURE], True), cells, _text(self.marks[PICTURE_END], True)]
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

    def _before_picture(self, text: str) -> Segments:
        room = self.context - self.image.cells - 4
        ids = unmarked(self.tokenizer, [text])[0][:room]
        return [_text([self.start, *ids, *self.marks[PICTURE]])]

    def _opening(self, picture: np.ndarray | None, most_tiles: int | None) -> Segments:
        if picture is None:
            return [_text([self.start])]
        cells = self.image.cells_of(picture, most_tiles)
        if len(cells) + 16 > self.context:
            raise UserError(f"A picture of {len(cells)} tokens leaves no room in a context of {self.context}.")
        before, after = [self.start, *self.marks[PICTURE]], self.marks[PICTURE_END]
        return [_text(before), Segment(IMAGE, cells, predicted=False), _text(after)]

    def _ask(self, question: str, room: int) -> Segments:
        """The question between its marks, in at most so many places; nothing for none."""
        if not question:
            return []
        asked = [*self.marks[USER], *unmarked(self.tokenizer, [question])[0]]
        return [_text([*asked[: room - len(self.marks[ASSISTANT])], *self.marks[ASSISTANT]])]

    def texts(self, rows: list[list[int]]) -> list[str]:
        """What was written, without marks."""
        return [text.strip() for text in self.tokenizer.decode(Tokens.of([row or [self.end] for row in rows]))]


def _text(ids: list[int], predicted: bool = False) -> Segment:
    return Segment(TEXT, torch.tensor(ids, dtype=torch.long), predicted)


def _texts(corpus: Corpus, most: int = 20_000) -> Iterator[str]:
    """Captions, questions and answers of training examples."""
    kinds = {type(modality) for modality in corpus.columns.values()}
    asks = Questions in kinds
    for row in corpus.sample("train", most).tolist():
        with contextlib.suppress(UnreadableExample):
            if Interleaved in kinds:
                yield from (piece["text"] for piece in corpus.raw(row, corpus.column_of(Interleaved)) if piece["text"])
            yield from (caption.text for caption in all_captions(corpus, row))
            if asks:
                yield from (text for question in QuestionsColumn().read(corpus, row) for text in question[:2])
