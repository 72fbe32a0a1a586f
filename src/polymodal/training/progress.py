"""What a run has used of its budget and logged: counters and history, which every checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from polymodal.data.sequence import PackedSequences
from polymodal.modalities.text import Tokens
from polymodal.types import Batch, Budget


@dataclass
class Progress:
    """Training state, part of every checkpoint.

    stage_name: of a recipe with several stages, else ''.
    seconds: training time without validation. tokens, positions: real tokens, and positions including padding.
    best_metric, best_value, best_step: the best validation, where `training.best` compares them.
    skipped_steps: steps without an update, because a loss or gradient was not finite.
    """

    step: int = 0
    stage: int = 0
    stage_name: str = ""
    examples: int = 0
    seconds: float = 0.0
    tokens: int = 0
    positions: int = 0
    flops: float = 0.0
    skipped_steps: int = 0
    consecutive_skipped_steps: int = 0
    best_metric: str = ""
    best_value: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def fraction(self, budget: Budget) -> float:
        """Return the used fraction of a budget."""
        return budget.fraction(
            steps=self.step, examples=self.examples, seconds=self.seconds, tokens=self.tokens, flops=self.flops
        )

    def fraction_since(self, earlier: Progress, interval: Budget) -> float:
        """Return the fraction of an interval that was used since an earlier state of this run."""
        return interval.fraction(
            steps=self.step - earlier.step,
            examples=self.examples - earlier.examples,
            seconds=self.seconds - earlier.seconds,
            tokens=self.tokens - earlier.tokens,
            flops=self.flops - earlier.flops,
        )

    @property
    def packing_efficiency(self) -> float:
        """Fraction of positions that hold a real token; 1 without sequences."""
        return self.tokens / self.positions if self.positions else 1.0

    def count_step(self, examples: int, seconds: float, flops: float) -> None:
        """Count one optimizer step over all processes."""
        self.step += 1
        self.examples += examples
        self.seconds += seconds
        self.flops += flops

    def count_tokens(self, batches: Sequence[Batch], processes: int) -> None:
        """Count the tokens of this process's micro-batches, for all processes."""
        for batch in batches:
            for value in batch.values():
                if isinstance(value, Tokens | PackedSequences):
                    self.tokens += value.token_count * processes
                    self.positions += value.position_count * processes

    def log(self, **metrics: Any) -> dict[str, Any]:
        """Append an entry to the history and return it."""
        where = {"step": self.step, "examples": self.examples, "seconds": round(self.seconds, 3)}
        self.history.append(where | metrics)
        return self.history[-1]


def _is_score(value: Any) -> bool:
    """Return whether a JSON value is a metric's, which may be negative, or none."""
    return value is None or (isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value))


@dataclass
class SavedState:
    """The JSON state of a checkpoint. taken: batches of the stage that were used. skipped: reasons by key."""

    progress: Progress
    taken: int
    skipped: dict[str, str]

    @classmethod
    def of(cls, values: Any) -> SavedState:
        """Read JSON values, which may have been edited. Raises ValueError for other names, types and ranges."""
        if not isinstance(values, Mapping):
            raise ValueError("no object of JSON")
        kinds = {one.name: type(one.default) for one in fields(Progress) if one.name != "history"}
        for name, value in values.items():
            if name in ("history", "skipped") or (name == "best_value" and _is_score(value)):
                continue
            kind = int if name == "taken" else kinds.get(name)
            fits = isinstance(value, float | int if kind is float else kind or ()) and not isinstance(value, bool)
            if not fits or (kind is not str and not (math.isfinite(value) and 0 <= value < 2**63)):
                raise ValueError(f"{name} is {str(value)[:40]!r}")
        history, skipped = values.get("history", []), values.get("skipped", {})
        if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
            raise ValueError("history is no list of objects")
        if not isinstance(skipped, dict) or not all(isinstance(reason, str) for reason in skipped.values()):
            raise ValueError("skipped has no reasons")
        counters = {name: value for name, value in values.items() if name in kinds}
        return cls(Progress(**counters, history=history), values.get("taken", 0), skipped)
