"""Interleaved sequences, and many of them packed into few rows, so that hardly a place is padding.

A sequence is an ordered list of segments: words, image patches, audio frames, discrete codes. Packed into a row with
others it keeps its own positions, and its document number keeps attention inside it (`layers.transformer.Packing`).
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TEXT = "text"


@dataclass(frozen=True)
class Span:
    """A stretch of one modality. values: token numbers (length), or features (length, dim).

    predicted: whether the loss asks for these places.
    """

    modality: str
    values: Int[Tensor, " length"] | Float[Tensor, "length dim"]
    predicted: bool = True

    def __len__(self) -> int:
        return len(self.values)


SpanSequence = list[Span]


@dataclass(frozen=True)
class PackedSequences:
    """Sequences in rows of one length; where a row has no token, `document` is 0 and all else is 0 or False.

    ids: token numbers, 0 at places of features. document: number of the sequence, from 1 in every row.
    position: from 0 in every sequence. modality: index into `modalities`. predicted: where the loss counts.
    features: for each modality that has them, its features in reading order of its places.
    """

    ids: Int[Tensor, "rows length"]
    document: Int[Tensor, "rows length"]
    position: Int[Tensor, "rows length"]
    modality: Int[Tensor, "rows length"]
    predicted: Bool[Tensor, "rows length"]
    modalities: tuple[str, ...]
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def token_count(self) -> int:
        return int((self.document > 0).sum())

    @property
    def position_count(self) -> int:
        return self.document.numel()

    @property
    def packing_efficiency(self) -> float:
        """The share of places that hold a token."""
        return self.token_count / self.position_count

    def of(self, modality: str) -> Bool[Tensor, "rows length"]:
        """True at the places of a modality."""
        return (self.modality == self.modalities.index(modality)) & (self.document > 0)

    def to(self, device: torch.device | str) -> PackedSequences:
        moved = {
            name: getattr(self, name).to(device) for name in ("ids", "document", "position", "modality", "predicted")
        }
        return replace(self, **moved, features={name: value.to(device) for name, value in self.features.items()})

    def __len__(self) -> int:
        return len(self.ids)


class SequenceBatch(TypedDict):
    """Whole sequences, whose predicted positions have a loss. Features of modalities may stand beside them by name."""

    sequences: PackedSequences


class PromptBatch(TypedDict):
    """Sequences to continue, one a row, which end in the last column (`pad_left`)."""

    prompts: PackedSequences


def first_fit(lengths: Listing[int], capacity: int) -> list[list[int]]:
    """Which sequences share a row: longest first, each into the first row that has room (first-fit decreasing).

    Needs at most 11/9 of the fewest possible rows, and one more (Dosa 2007). Raises ValueError for a length over the
    capacity.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a sequence of {length} does not fit into rows of {capacity}")
        row = next((row for row, left in enumerate(room) if left >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= length
    return rows


def balanced(lengths: Listing[int], capacity: int) -> list[list[int]]:
    """As few rows as `first_fit` needs, and these as short as it can make them: the last one is not left half empty."""
    rows = first_fit(lengths, capacity)
    low, high = max([*lengths, -(-sum(lengths) // max(len(rows), 1))], default=0), capacity
    while low < high:
        middle = (low + high) // 2
        tried = first_fit(lengths, middle)
        if len(tried) <= len(rows):
            rows, high = tried, middle
        else:
            low = middle + 1
    return rows


def pack(sequences: Listing[SpanSequence], capacity: int) -> PackedSequences:
    """Sequences in rows of at most `capacity` places; what is longer is cut at its end.

    Raises ValueError when there is nothing to pack.
    """
    cut = [_cut(sequence, capacity) for sequence in sequences]
    lengths = [sum(map(len, sequence)) for sequence in cut]
    if not any(lengths):
        raise ValueError("there is no token to pack")
    return _laid_out(cut, balanced(lengths, capacity))


def pad_sequences(sequences: Listing[SpanSequence], pad_left: bool = False) -> PackedSequences:
    """One sequence a row, in the order given. to_the_right: all of them end in the last place, to be gone on with."""
    return _laid_out(sequences, [[index] for index in range(len(sequences))], pad_left)


def _laid_out(cut: Listing[SpanSequence], rows: list[list[int]], pad_left: bool = False) -> PackedSequences:
    """rows: which sequences share one. Features are joined in reading order."""
    taken = [sum(len(segment) for index in row for segment in cut[index]) for row in rows]
    shape = (len(rows), max(taken))
    modalities = tuple(sorted({segment.modality for sequence in cut for segment in sequence}))
    ids, document, position, modality = (torch.zeros(shape, dtype=torch.long) for _ in range(4))
    predicted = torch.zeros(shape, dtype=torch.bool)
    features: dict[str, list[Tensor]] = {}
    for row, members in enumerate(rows):
        place = shape[1] - taken[row] if pad_left else 0
        for number, index in enumerate(members, start=1):
            begin = place
            for segment in cut[index]:
                here = slice(place, place + len(segment))
                if segment.values.ndim == 1:
                    ids[row, here] = segment.values
                else:
                    features.setdefault(segment.modality, []).append(segment.values)
                modality[row, here] = modalities.index(segment.modality)
                predicted[row, here] = segment.predicted
                place = here.stop
            document[row, begin:place] = number
            position[row, begin:place] = torch.arange(place - begin)
    joined = {name: torch.cat(values) for name, values in features.items()}
    return PackedSequences(ids, document, position, modality, predicted, modalities, joined)


def _cut(sequence: SpanSequence, capacity: int) -> SpanSequence:
    kept, room = [], capacity
    for segment in sequence:
        if room > 0:
            kept.append(replace(segment, values=segment.values[:room]))
            room -= len(kept[-1])
    return kept
