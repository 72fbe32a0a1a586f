"""What a tuning shows while it runs: its plan, a bar on a terminal, and a line a result."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from polymodal.evaluation.units import number
from polymodal.reproduce.halving_result import field_of
from polymodal.reproduce.timing import FEW_STEPS
from polymodal.training.progress import Progress as TrainingProgress
from polymodal.training.trainer import OnStep

MAX_WIDTH = 80


class HalvingDisplay:
    """Shows on standard error what is planned, the candidate in training, and the score of each."""

    def __init__(self, note: str = "", console: Console | None = None):
        """note: a sentence that the plan begins with."""
        self.note = note
        self.console = console or Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=16), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("tuning", total=None)

    def __enter__(self) -> HalvingDisplay:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        width = min(self.console.width, MAX_WIDTH)
        self.console.print(
            textwrap.fill(text, width, break_on_hyphens=False), highlight=False, markup=False, soft_wrap=True
        )

    def planned(self, record: Mapping[str, Any]) -> None:
        """Say the candidates, the rungs and the cost, before anything is trained."""
        count, rungs = len(record["candidates"]), record["rungs"]
        fields = " x ".join(f"{len(values)} of {field_of(name)}" for name, values in record["grid"].items())
        parts = [f"{rung['candidates']} until step {rung['steps']:,}" for rung in rungs]
        ends = [*(rung["steps"] for rung in rungs)]
        sizes = [*(rung["candidates"] for rung in rungs), 0]
        total = sum(end * (size - after) for end, size, after in zip(ends, sizes, sizes[1:], strict=False))
        if self.note:
            self.say(self.note)
        self.say(f"{record['recipe']['name']}: {count} candidates ({fields}).")
        self.say(
            f"Rungs: {', '.join(parts)}, the end. At most {total:,} steps of training, within the budget of "
            f"{record['budget']}; validation comes on top. Seed {record['seed']}; the test split is not read."
        )
        if ends[0] < FEW_STEPS:
            self.say(f"The first rung has fewer than {FEW_STEPS} steps, which tell little: a larger --budget, or fewer "
                     "values in --grid, gives it more.")  # fmt: skip

    def on_step(self, title: str, begin: int, end: int) -> OnStep:
        """Return what moves the bar of a candidate from its checkpoint to the end of its rung."""
        self.bar.reset(self.task, description=title, total=end - begin)

        def show(progress: TrainingProgress, reached: float, losses: Mapping[str, Any]) -> None:
            self.bar.update(self.task, completed=progress.step - begin)

        return show

    def judged(self, title: str, entry: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Show the result of a candidate."""
        if "value" in entry:
            metric = record["metric"].rpartition("/")[2]
            self.say(f"{title}: {metric} {number(record['unit'], entry['value'])}")
        else:
            self.say(f"{title}: {entry.get('failure') or 'no result'}")
