"""What may follow in a generated sequence of text and items of other modalities, and what it holds so far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from polymodal.data.sequence import TEXT
from polymodal.models.joint_vocabulary import CodeFormat, JointVocabulary


class InterleavedWriter:
    """What a row of an interleaved sequence has so far. modality, remaining: of the item that is begun."""

    def __init__(self, vocabulary: JointVocabulary, formats: Mapping[str, CodeFormat], end: int):
        self.vocabulary, self.formats, self.end = vocabulary, formats, end
        self.stretches: list[tuple[str, list[int]]] = []
        self.modality: str | None = None
        self.remaining = 0
        self.finished = False

    def add(self, entry: int) -> None:
        """Append an entry, which `allowed` must permit; nothing after the end token."""
        if self.finished:
            return
        if self.modality is None:
            begun = [name for name, form in self.formats.items() if form.begin == entry]
            if entry == self.end:
                self.finished = True
            elif begun:
                self.modality, self.remaining = begun[0], self.formats[begun[0]].num_codes
                self.stretches.append((begun[0], []))
            else:
                if not self.stretches or self.stretches[-1][0] != TEXT:
                    self.stretches.append((TEXT, []))
                self.stretches[-1][1].append(entry)
        elif self.remaining:
            self.stretches[-1][1].append(entry - self.vocabulary.offsets[self.modality])
            self.remaining -= 1
        else:
            self.modality = None

    def allowed(self, left: int, device: torch.device) -> Bool[Tensor, " vocabulary"]:
        """Which entries may come next. left: tokens that may still be written."""
        allowed = torch.zeros(self.vocabulary.total, dtype=torch.bool, device=device)
        if self.finished:
            allowed[self.end] = True
        elif self.modality is None:
            allowed[self.vocabulary.slice_of(TEXT)] = True
            for form in self.formats.values():
                allowed[form.begin] = left >= form.num_codes + 2
                allowed[form.end] = False
        elif self.remaining:
            allowed[self.vocabulary.slice_of(self.modality)] = True
        else:
            allowed[self.formats[self.modality].end] = True
        return allowed
