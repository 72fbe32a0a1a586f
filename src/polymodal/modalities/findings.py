"""Findings of a study: for each of a fixed list, the sentence that says it is there, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


@dataclass(frozen=True)
class Findings:
    """Column of findings, stored as a sentence for each that is present, and null for all others.

    names: of the findings, by index, such as "Pleural effusion". regions: the region of the body of each; findings of
    a region stand together in a report.
    """

    names: tuple[str, ...]
    regions: tuple[str, ...]

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.struct(dict.fromkeys(self.names, pa.string()))

    def decode(self, value: Mapping[str, str | None]) -> tuple[str, ...]:
        """Return the sentence of each finding, empty where it is absent. Raises UnreadableExample for a finding that
        the record lacks."""
        missing = [name for name in self.names if name not in value]
        if missing:
            raise UnreadableExample(f"the finding '{missing[0]}' is not in the record")
        return tuple((value[name] or "").strip() for name in self.names)

    def describe(self, value: Sequence[str]) -> str:
        return "; ".join(sentence for sentence in value if sentence) or "no finding"

    def plot(self, value: Sequence[str], axes: Any) -> None:
        write_text(axes, "\n".join(sentence for sentence in value if sentence) or "no finding", size=7, width=42)
