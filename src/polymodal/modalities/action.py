"""Action sequences: recorded steps of an expert, each an action type with an optional target and typed text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polymodal.errors import UnreadableExample
from polymodal.modalities.modality import write_text
from polymodal.modalities.padding import mask_of, pad
from polymodal.modalities.text import Tokenizer, Tokens


class Action(NamedTuple):
    """One action. number: index of the action type. target: index of an element of the page, -1 for none. text:
    typed text."""

    number: int
    target: int = -1
    text: str = ""


@dataclass(frozen=True)
class ActionSteps:
    """Batch of action sequences, padded on the right.

    number: action types. target: elements, -1 for none. text: typed text, one per real action in row-major order; start
    and end token alone where none is typed.
    """

    number: Int[Tensor, "batch length"]
    target: Int[Tensor, "batch length"]
    text: Tokens
    lengths: Int[Tensor, " batch"]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[Action]], tokenizer: Tokenizer) -> ActionSteps:
        """Collate sequences of at least one action each."""
        number = pad([torch.tensor([action.number for action in actions]) for actions in sequences])
        target = pad([torch.tensor([action.target for action in actions]) for actions in sequences])
        return cls(
            number.values,
            target.values,
            tokenizer([action.text for actions in sequences for action in actions]),
            number.lengths,
        )

    @property
    def mask(self) -> Bool[Tensor, "batch length"]:
        """True for real actions."""
        return mask_of(self.lengths, self.number.shape[1])

    def to(self, device: torch.device | str) -> ActionSteps:
        text = self.text.to(device)
        return ActionSteps(self.number.to(device), self.target.to(device), text, self.lengths.to(device))

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Actions:
    """Column of action sequences. names: action types, by index."""

    names: tuple[str, ...]

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.struct({"name": pa.string(), "target": pa.int32(), "text": pa.string()}))

    def decode(self, value: list[Mapping[str, Any]]) -> list[Action]:
        """Decode actions. Raises UnreadableExample for an unknown action type."""
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
        if not value:
            return "nothing"
        count = f"{len(value)} actions" if len(value) > 1 else "an action"
        return f"{count}: {', '.join(self._said(action) for action in value[:6])}"

    def plot(self, value: list[Action], axes: Any) -> None:
        write_text(axes, ", ".join(self._said(action) for action in value), size=7, lines=12)
