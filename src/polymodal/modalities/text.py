"""Texts with their language, and the tokens made of them."""

from __future__ import annotations

import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text
from polymodal.modalities.padding import mask_of

FILE = "tokenizer.json"  # of a run
PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
UNKNOWN_LANGUAGE = "und"  # BCP 47's code for "undetermined"


class Caption(NamedTuple):
    """One text about an example; `language` is a BCP 47 code."""

    text: str
    language: str = UNKNOWN_LANGUAGE


@dataclass(frozen=True)
class Text:
    """A column of captions: a string, a list of strings, or a list of `{"text", "language"}` records.

    language_shares: how often training draws each language, relative to the others; languages not named share 1.
    languages: captions in other languages are not read; empty reads all.
    """

    language_shares: Mapping[str, float] = field(default_factory=dict)
    languages: tuple[str, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"text": pa.string(), "language": pa.string()}))

    @property
    def main_language(self) -> str | None:
        """The language that training draws most often; None when nothing is said of it."""
        shares = self.language_shares
        return max(shares, key=lambda language: shares[language]) if shares else None

    def decode(self, value: Any) -> list[Caption]:
        """All captions that are not blank, in the languages that are read. Raises UnreadableExample when none is."""
        records = value if isinstance(value, list | tuple | np.ndarray) else [value]
        captions = []
        for record in records:
            caption = Caption(record["text"], record["language"]) if isinstance(record, dict) else Caption(record)
            wanted = not self.languages or caption.language in self.languages
            if wanted and isinstance(caption.text, str) and caption.text.strip():
                captions.append(caption)
        if not captions:
            raise UnreadableExample("the caption is empty")
        return captions

    def describe(self, value: list[Caption]) -> str:
        languages = {caption.language for caption in value}
        first = next((caption.text for caption in value if caption.language == "en"), value[0].text)
        count = f" (one of {len(value)} texts" if len(value) > 1 else ""
        return f"{first}{count}{f' in {len(languages)} languages' if len(languages) > 1 else ''}{')' if count else ''}"

    def plot(self, value: list[Caption], axes: Any) -> None:
        write_text(axes, self.describe(value), size=9)

    def only(self, languages: tuple[str, ...]) -> Text:
        """The same column, of which captions in these languages are read."""
        shares = {language: share for language, share in self.language_shares.items() if language in languages}
        return Text(shares, languages)

    def in_main_language(self, captions: list[Caption]) -> list[Caption]:
        """Those in the main language; all where nothing is said of it, or none is in it."""
        main = self.main_language
        return [caption for caption in captions if main in (None, caption.language)] or captions

    def choose(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """One caption: first a language by its share, then a caption of that language uniformly."""
        places = _places_by_language(tuple(caption.language for caption in captions))
        language = next(iter(places))
        if len(places) > 1:
            shares = np.array([self.language_shares.get(language, 1.0) for language in places])
            language = list(places)[int(np.searchsorted(np.cumsum(shares / shares.sum()), rng.random()))]
        of_language = places[language]
        return captions[of_language[int(rng.integers(len(of_language)))]].text


@lru_cache(maxsize=1024)
def _places_by_language(languages: tuple[str, ...]) -> dict[str, list[int]]:
    """For each language, in alphabetical order, where it stands."""
    return {
        language: [n for n, other in enumerate(languages) if other == language] for language in sorted({*languages})
    }


def stored_texts(*texts: str, language: str = "en") -> list[dict[str, str]]:
    """Texts of one language, as a column of built-in corpora holds them."""
    return [{"text": text, "language": language} for text in texts]


def text_ids(texts: Sequence[str]) -> Float[Tensor, " batch"]:
    """A number for each text, equal for equal texts, such as to tell which of a batch are no negatives."""
    return torch.tensor([float(zlib.crc32(text.encode())) for text in texts], dtype=torch.float64)


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences of different length, padded on the right.

    ids: token numbers; what stands after a sequence's length is padding and has no meaning.
    lengths: the number of real tokens of each sequence, at least 1.
    """

    ids: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]

    @classmethod
    def of(cls, rows: list[list[int]]) -> Tokens:
        """Sequences of token numbers, padded to the longest of them."""
        lengths = [len(row) for row in rows]
        ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return cls(torch.from_numpy(ids), torch.tensor(lengths))

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True where a token is real."""
        return mask_of(self.lengths, self.ids.shape[1])

    @property
    def content_mask(self) -> Bool[Tensor, "batch length"]:
        """True where a token is a piece of the text: neither padding nor the mark at its start or end."""
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (place > 0) & (place < self.lengths[:, None] - 1)

    @property
    def token_count(self) -> int:
        return int(self.lengths.sum())

    @property
    def position_count(self) -> int:
        """Places that a text encoder computes: padding is none of them, for it packs the tokens first."""
        return self.token_count

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids.to(device), self.lengths.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to tokens, with the marks that a text encoder wants; saved with a run."""

    context_length: int

    @property
    def vocab_size(self) -> int:
        """Entries, marks included."""
        ...

    def __call__(self, texts: list[str]) -> Tokens: ...

    def decode(self, tokens: Tokens) -> list[str]: ...

    def save(self, directory: Path) -> None: ...


class TextTokenizer:
    """Byte-level BPE, with which every string of every language has tokens and comes back, or characters."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, context_length: int):
        self.tokenizer = tokenizer
        self.context_length = context_length
        vocabulary = tokenizer.get_vocab()
        self.start, self.end = vocabulary[START], vocabulary[END]

    @classmethod
    def train(
        cls, texts: Iterable[str], vocabulary: int, context_length: int, marks: Sequence[str] = ()
    ) -> TextTokenizer:
        """Learn a vocabulary of at most `vocabulary` entries (256 bytes and 3 marks at the least) from `texts`.

        marks: further ones, such as those around an image or an answer.
        """
        tokenizer = tokenizers.Tokenizer(models.BPE())
        # Lower case, as CLIP's. A space before the first word makes it the same token as in the middle of a text.
        folded = [normalizers.Lowercase(), normalizers.NFC(), normalizers.Prepend(" ")]
        tokenizer.normalizer = normalizers.Sequence(folded)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END, *marks],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, context_length)

    @classmethod
    def characters(cls, texts: Iterable[str], vocabulary: int, context_length: int) -> TextTokenizer:
        """Characters for tokens, in lower case: at most `vocabulary` entries with marks, the most frequent ones.

        What is none of them becomes a mark for the unknown.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(unicodedata.normalize("NFC", text.lower()))
        marks = [PAD, START, END, UNKNOWN]
        known = [character for character, _ in counts.most_common(vocabulary - len(marks))]
        entries = {entry: number for number, entry in enumerate([*marks, *known])}
        tokenizer = tokenizers.Tokenizer(models.WordLevel(entries, unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC()])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(marks)
        return cls(tokenizer, context_length)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def marks(self) -> set[str]:
        """The entries that are no pieces of texts, such as start and end."""
        return {mark.content for mark in self.tokenizer.get_added_tokens_decoder().values()}

    def __call__(self, texts: list[str]) -> Tokens:
        """Start mark, the text's tokens, end mark; cut to `context_length`, padded to this batch's longest only."""
        room = self.context_length - 2
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return Tokens.of([[self.start, *encoding.ids[:room], self.end] for encoding in encoded])

    def pieces(self, text: str) -> tuple[list[int], list[slice]]:
        """The text's tokens, without marks, and which of its characters each is made of."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [slice(*place) for place in encoding.offsets]

    def decode(self, tokens: Tokens) -> list[str]:
        """The texts again, without marks and padding."""
        rows = [ids[:length] for ids, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)]
        return [text.removeprefix(" ") for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]

    def save(self, directory: Path) -> None:
        self.tokenizer.save(str(directory / FILE))

    @classmethod
    def load(cls, directory: Path, context_length: int) -> TextTokenizer:
        return cls(tokenizers.Tokenizer.from_file(str(directory / FILE)), context_length)


def bos_eos(tokenizer: Tokenizer) -> tuple[int, int]:
    """The marks that a tokenizer puts around a text."""
    nothing = tokenizer([""])
    return int(nothing.ids[0, 0]), int(nothing.ids[0, nothing.lengths[0] - 1])


def encode_without_special_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token numbers of each text without the marks at its start and end."""
    if not texts:
        return []
    tokens = tokenizer(texts)
    lengths = tokens.lengths.tolist()
    return [ids[1 : length - 1] for ids, length in zip(tokens.ids.tolist(), lengths, strict=True)]


def joined_pieces(parts: list[list[str]], tokenizer: Tokenizer) -> tuple[Tokens, Int[Tensor, "batch length"]]:
    """Sequences of texts that are tokenised one by one and joined between one start and one end mark.

    parts: of each sequence, such as the words of a page. Also returns which part a token is of, -1 for marks and
    padding. What is longer than the tokenizer's context is cut.
    """
    start, end = bos_eos(tokenizer)
    rows: list[tuple[list[int], list[int]]] = []
    for texts in parts:
        pieces = encode_without_special_tokens(tokenizer, texts)
        owned = [(piece, number) for number, own in enumerate(pieces) for piece in own][: tokenizer.context_length - 2]
        rows.append(([start, *(piece for piece, _ in owned), end], [-1, *(number for _, number in owned), -1]))
    tokens = Tokens.of([ids for ids, _ in rows])
    longest = tokens.ids.shape[1]
    return tokens, torch.tensor([numbers + [-1] * (longest - len(numbers)) for _, numbers in rows])
