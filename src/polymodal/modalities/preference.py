"""Preference pairs: two answers to a question about an example, of which one is preferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.modalities.modality import write_text


class Preference(NamedTuple):
    """Preference pair. kind: how it was made, such as `correctness`."""

    question: str
    chosen: str
    rejected: str
    kind: str


@dataclass(frozen=True)
class Preferences:
    """Column of lists of preference pairs."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct(dict.fromkeys(Preference._fields, pa.string())))

    def decode(self, value: list[Mapping[str, str]]) -> list[Preference]:
        return [Preference(*(record[name] for name in Preference._fields)) for record in value]

    def describe(self, value: list[Preference]) -> str:
        text = "; ".join(f"{pair.question} {pair.chosen} rather than {pair.rejected}" for pair in value[:1])
        return f"{len(value)} preferences: {text}"

    def plot(self, value: list[Preference], axes: Any) -> None:
        lines = (f"{pair.question}\n+ {pair.chosen}\n- {pair.rejected}" for pair in value)
        write_text(axes, "\n".join(lines), size=7, width=42, lines=10)
