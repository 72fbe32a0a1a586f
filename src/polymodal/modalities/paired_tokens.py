"""Two texts as one token sequence: [CLS] first [SEP] second [SEP], as BERT reads pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polymodal.modalities.text import Tokenizer, Tokens, bos_eos, encode_without_special_tokens


@dataclass(frozen=True)
class PairedTokens(Tokens):
    """Batch of pairs of texts. first_lengths: tokens of the first segment, with the special ones around it."""

    first_lengths: Int[Tensor, " batch"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @property
    def segments(self) -> Int[Tensor, "batch length"]:
        """Token types: 0 in the first segment, 1 in the second."""
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (position >= self.first_lengths[:, None]).long()

    @property
    def content_mask(self) -> Bool[Tensor, "batch length"]:
        """True for content tokens: no padding, and none of the three special tokens."""
        position = torch.arange(self.ids.shape[1], device=self.ids.device)
        return super().content_mask & (position != self.first_lengths[:, None] - 1)

    def to(self, device: torch.device | str) -> PairedTokens:
        ids, lengths, first = (x.to(device) for x in (self.ids, self.lengths, self.first_lengths))
        return replace(self, ids=ids, lengths=lengths, first_lengths=first)


def truncate_longer(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Take tokens from the end of the longer of two sequences until both fit; of equally long ones, from the second.

    This is the strategy `longest_first` of transformers' tokenizers.
    """
    excess = len(first) + len(second) - room
    if excess <= 0:
        return first, second
    shorter = min(len(first), len(second))
    if max(room - shorter, 0) >= shorter:  # the longer one alone is cut
        return (first[: room - len(second)], second) if len(first) > len(second) else (first, second[: room - shorter])
    return first[: room - room // 2], second[: room // 2]


def paired_tokens(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, max_length: int) -> PairedTokens:
    """Tokenize pairs of texts into one sequence each, of at most `max_length` tokens.

    The second segment is left out where its text is empty.
    """
    start, end = bos_eos(tokenizer)
    texts = encode_without_special_tokens(tokenizer, [text for pair in pairs for text in pair])
    rows, first_lengths = [], []
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        first, second = truncate_longer(first, second, max_length - (3 if second else 2))
        rows.append([start, *first, end, *([*second, end] if second else [])])
        first_lengths.append(len(first) + 2)
    tokens = Tokens.of(rows)
    return PairedTokens(tokens.ids, tokens.lengths, first_lengths=torch.tensor(first_lengths))
