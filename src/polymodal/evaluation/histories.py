"""What tasks on interaction histories share: the split of a test user's history into given and held-out items."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from numpy import ndarray

from polymodal.data.loader import Reader
from polymodal.errors import UserError

GIVEN = 0.8  # fraction of a history, its beginning, that the method sees


@dataclass(frozen=True)
class SplitHistories:
    """Histories of the users of a split, oldest item first, that have any item to hold out."""

    given: list[Int[ndarray, " _"]]
    held_out: list[Int[ndarray, " _"]]

    @classmethod
    def of(cls, reader: Reader, split: str) -> SplitHistories:
        """Raises UserError when every history of the split is too short."""
        histories = [example["history"] for example in reader.read_all(reader.corpus.rows(split))[1]]
        ends = [max(1, round(GIVEN * len(history))) for history in histories]
        pairs = [(h[:end], h[end:]) for h, end in zip(histories, ends, strict=True) if end < len(h)]
        if not pairs:
            raise UserError(
                f"No history of the split '{split}' of '{reader.corpus.name}' is long enough to hold some of it back."
            )
        return cls([given for given, _ in pairs], [held_out for _, held_out in pairs])
