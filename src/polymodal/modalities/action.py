"""What an expert did, step by step: named actions, with a target and a text where the action has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text


class Action(NamedTuple):
    """number: of the kind of action. target: of an element of the page, -1 for none. text: what is typed."""

    number: int
    target: int = -1
    text: str = ""


@dataclass(frozen=True)
class Actions:
    """A column of sequences of actions. names: every kind of action."""

    names: tuple[str, ...]

    @property
    def storage(self) -> pa.DataType:
        return pa.list_(pa.struct({"name": pa.string(), "target": pa.int32(), "text": pa.string()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Action]:
        """Raises UnreadableExample for an action that is not in the list."""
        actions = []
        for record in value:
            if record["name"] not in self.names:
                raise UnreadableExample(f"'{record['name']}' is not one of the {len(self.names)} actions")
            target = -1 if record["target"] is None else record["target"]
            actions.append(Action(self.names.index(record["name"]), target, record["text"] or ""))
        return actions

    def _said(self, action: Action) -> str:
        target = f" #{action.target}" if action.target >= 0 else ""
        return f"{self.names[action.number]}{target}{f' “{action.text}”' if action.text else ''}"

    def describe(self, value: list[Action]) -> str:
        return f"{len(value)} actions: {', '.join(self._said(action) for action in value[:6])}"

    def draw(self, value: list[Action], axes: Any) -> None:
        write_text(axes, ", ".join(self._said(action) for action in value), size=7, lines=12)
