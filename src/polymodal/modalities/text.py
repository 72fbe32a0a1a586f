"""Texts with their language, tokens, and tokenizers."""

from __future__ import annotations

import dataclasses
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

from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.modality import write_text
from polymodal.modalities.padding import mask_of

FILE = "tokenizer.json"  # of a run
PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"
UNKNOWN_LANGUAGE = "und"  # BCP 47's code for "undetermined"


class Caption(NamedTuple):
    """Text about an example; `language` is a BCP 47 code."""

    text: str
    language: str = UNKNOWN_LANGUAGE


@dataclass(frozen=True)
class Text:
    """Column of captions: a string, a list of strings, or a list of `{"text", "language"}` records.

    language_shares: relative sampling weights of languages in training; languages not named have weight 1. languages:
    only captions in these languages are kept; empty keeps all.
    """

    language_shares: Mapping[str, float] = field(default_factory=dict)
    languages: tuple[str, ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"text": pa.string(), "language": pa.string()}))

    @property
    def main_language(self) -> str | None:
        """The language with the largest sampling weight; None without weights."""
        shares = self.language_shares
        return max(shares, key=lambda language: shares[language]) if shares else None

    def decode(self, value: Any) -> list[Caption]:
        """Return all non-blank captions in the selected languages. Raises UnreadableExample when there are none."""
        records = value if isinstance(value, list | tuple | np.ndarray) else [value]
        captions = []
        for record in records:
            caption = Caption(record["text"], record["language"]) if isinstance(record, dict) else Caption(record)
            selected = not self.languages or not without_private_use(caption.language).isdisjoint(self.languages)
            if selected and isinstance(caption.text, str) and caption.text.strip():
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
        """Return the same column, restricted to captions in these languages."""
        shares = {language: share for language, share in self.language_shares.items() if language in languages}
        return Text(shares, languages)

    def in_main_language(self, captions: list[Caption]) -> list[Caption]:
        """Return the captions in the main language; all where there is no main language, or no caption in it.

        Raises UserError where there is none.
        """
        _check_any(captions)
        main = self.main_language
        return [caption for caption in captions if main in (None, caption.language)] or captions

    def choose(self, captions: list[Caption], rng: np.random.Generator) -> str:
        """Sample a caption: first a language by its weight, then uniformly among its captions.

        Raises UserError where there is none.
        """
        _check_any(captions)
        indices = _places_by_language(tuple(caption.language for caption in captions))
        language = next(iter(indices))
        if len(indices) > 1:
            shares = np.array([self.language_shares.get(language, 1.0) for language in indices])
            language = list(indices)[int(np.searchsorted(np.cumsum(shares / shares.sum()), rng.random()))]
        of_language = indices[language]
        return captions[of_language[int(rng.integers(len(of_language)))]].text


def without_private_use(language: str) -> set[str]:
    """Return a BCP 47 tag, and what it is without private subtags: `en` for `en-x-ssc`, which selects it, too."""
    return {language, language.partition("-x-")[0]}


def _check_any(captions: list[Caption]) -> None:
    if not captions:
        raise UserError("This method reads a text of every example, and one has none; leave such examples out.")


@lru_cache(maxsize=1024)
def _places_by_language(languages: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the caption indices of each language, in alphabetical order of languages."""
    return {
        language: [n for n, other in enumerate(languages) if other == language] for language in sorted({*languages})
    }


def stored_texts(*texts: str, language: str = "en") -> list[dict[str, str]]:
    """Return texts of one language in the storage of built-in corpora."""
    return [{"text": text, "language": language} for text in texts]


def text_ids(texts: Sequence[str]) -> Float[Tensor, " batch"]:
    """Return an id for each text, equal for equal texts, such as to exclude false negatives of a batch."""
    return torch.tensor([float(zlib.crc32(text.encode())) for text in texts], dtype=torch.float64)


@dataclass(frozen=True)
class Tokens:
    """Batch of token sequences, padded on the right.

    ids: values after a sequence's length are padding. lengths: number of real tokens per sequence, at least 1.
    special_tokens: number of special tokens at the start and the end, such as (0, 1) for T5 and SigLIP.
    """

    ids: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]
    special_tokens: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, rows: list[list[int]]) -> Tokens:
        """Pad sequences of token ids to the longest."""
        lengths = [len(row) for row in rows]
        ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return cls(torch.from_numpy(ids), torch.tensor(lengths))

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True for real tokens."""
        return mask_of(self.lengths, self.ids.shape[1])

    @property
    def content_mask(self) -> Bool[Tensor, "batch length"]:
        """True for content tokens: neither padding nor start or end token."""
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        start, end = self.special_tokens
        return (position >= start) & (position < self.lengths[:, None] - end)

    def without_start(self) -> Tokens:
        """Drop the start tokens."""
        start, end = self.special_tokens
        return Tokens(self.ids[:, start:], self.lengths - start, (0, end))

    @property
    def token_count(self) -> int:
        return int(self.lengths.sum())

    @property
    def position_count(self) -> int:
        """Number of positions that a text encoder computes; excludes padding, as tokens are packed."""
        return self.token_count

    def to(self, device: torch.device | str) -> Tokens:
        return dataclasses.replace(self, ids=self.ids.to(device), lengths=self.lengths.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


@runtime_checkable
class Tokenizer(Protocol):
    """Interface of tokenizers, which add the special tokens of their text encoder; saved with a run.

    Texts never become special tokens, whatever they say.
    """

    context_length: int

    @property
    def vocab_size(self) -> int:
        """Vocabulary size, including special tokens."""
        ...

    def __call__(self, texts: list[str]) -> Tokens: ...

    def mark_ids(self, mark: str) -> list[int]:
        """Return the id of a special token, or the tokens of its text where the tokenizer was trained without it."""
        ...

    def decode(self, tokens: Tokens) -> list[str]: ...

    def save(self, directory: Path) -> None: ...


class TextTokenizer:
    """Byte-level BPE tokenizer, which is lossless for any language up to case, or a character tokenizer.

    Special tokens enter only by id: in a text, `<end>` is five characters like any others.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, context_length: int):
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # a text that names a special token is ordinary text
        self.context_length = context_length
        vocabulary = tokenizer.get_vocab()
        self.start, self.end = vocabulary[START], vocabulary[END]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.tokenizer.encode_special_tokens = True  # pickles of tokenizers do not keep it

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary: int,
        context_length: int,
        marks: Sequence[str] = (),
        keep_case: bool = False,
    ) -> TextTokenizer:
        """Train byte-level BPE with at most `vocabulary` entries (at least 256 bytes and 3 special tokens).

        marks: further special tokens, such as those around an image or an answer. keep_case: as code needs it.
        """
        tokenizer = tokenizers.Tokenizer(models.BPE())
        # Lower case, as in CLIP. A leading space gives the first word the same token as in the middle of a text.
        folded = [normalizers.NFC(), normalizers.Prepend(" ")]
        tokenizer.normalizer = normalizers.Sequence(folded if keep_case else [normalizers.Lowercase(), *folded])
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
        """Train a lower-case character tokenizer with at most `vocabulary` entries, the most frequent characters.

        Others become the unknown token.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(unicodedata.normalize("NFC", text.lower()))
        marks = [PAD, START, END, UNKNOWN]
        characters = [character for character, _ in counts.most_common(vocabulary - len(marks))]
        entries = {entry: index for index, entry in enumerate([*marks, *characters])}
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
        """The special tokens, such as start and end."""
        return {mark.content for mark in self.tokenizer.get_added_tokens_decoder().values()}

    def __call__(self, texts: list[str]) -> Tokens:
        """Tokenize with start and end token, truncated to `context_length`, padded to the longest of the batch."""
        room = self.context_length - 2
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return Tokens.of([[self.start, *encoding.ids[:room], self.end] for encoding in encoded])

    def mark_ids(self, mark: str) -> list[int]:
        return [self.tokenizer.get_vocab()[mark]]

    def pieces(self, text: str) -> tuple[list[int], list[slice]]:
        """Return the token ids without special tokens, and the character span of each."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [slice(*offsets) for offsets in encoding.offsets]

    def decode(self, tokens: Tokens) -> list[str]:
        """Decode to texts without special tokens and padding."""
        rows = [ids[:length] for ids, length in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)]
        return [text.removeprefix(" ") for text in self.tokenizer.decode_batch(rows, skip_special_tokens=True)]

    def save(self, directory: Path) -> None:
        self.tokenizer.save(str(directory / FILE))

    @classmethod
    def load(cls, directory: Path, context_length: int) -> TextTokenizer:
        return cls(tokenizers.Tokenizer.from_file(str(directory / FILE)), context_length)


def bos_eos(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of the start and end token (BOS, EOS)."""
    with torch.device("cpu"):  # ids are read where modules are built without memory, too
        empty = tokenizer([""])
    return int(empty.ids[0, 0]), int(empty.ids[0, empty.lengths[0] - 1])


def encode_without_special_tokens(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text without start and end token."""
    if not texts:
        return []
    tokens = tokenizer(texts)
    lengths = tokens.lengths.tolist()
    return [ids[1 : length - 1] for ids, length in zip(tokens.ids.tolist(), lengths, strict=True)]


def joined_pieces(parts: list[list[str]], tokenizer: Tokenizer) -> tuple[Tokens, Int[Tensor, "batch length"]]:
    """Tokenize sequences of texts one by one and join each sequence between one start and one end token.

    parts: texts per sequence, such as the words of a page. Also returns the index of the text of each token, -1 for
    special tokens and padding. Sequences beyond the tokenizer's context length are truncated.
    """
    start, end = bos_eos(tokenizer)
    rows: list[tuple[list[int], list[int]]] = []
    for texts in parts:
        pieces = encode_without_special_tokens(tokenizer, texts)
        indexed = [(piece, index) for index, text_pieces in enumerate(pieces) for piece in text_pieces][
            : tokenizer.context_length - 2
        ]
        rows.append(([start, *(piece for piece, _ in indexed), end], [-1, *(index for _, index in indexed), -1]))
    tokens = Tokens.of([ids for ids, _ in rows])
    longest = tokens.ids.shape[1]
    return tokens, torch.tensor([numbers + [-1] * (longest - len(numbers)) for _, numbers in rows])
