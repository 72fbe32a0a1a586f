"""The live table of a comparison; on a terminal it is redrawn in place, elsewhere a line is printed a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from polymodal.evaluation import Score
from polymodal.evaluation.statistics import headlines
from polymodal.evaluation.units import number
from polymodal.training.progress import Progress
from polymodal.training.progress_bar import cells
from polymodal.training.trainer import OnStep
from polymodal.types import Budget

MAX_METRICS = 3
COLUMNS = {
    "state": "state",
    "stage": "stage",
    "steps": "steps",
    "examples": "examples",
    "flops": "FLOPs",
    "seconds": "seconds",
    "left": "time left",
    "losses": "losses",
    "metrics": "test metrics",
}
# Columns of the terminal from which on they are shown.
MIN_WIDTHS = {"examples": 140, "flops": 140, "seconds": 140, "steps": 100, "left": 70, "stage": 100, "metrics": 100}
FINISHED = "[green]finished"


class ProgressReporter(ABC):
    """Hears of every trial's steps, scoring and end."""

    @abstractmethod
    def show(self, label: str, seed: int, **changes: str) -> None:
        """What is new of a trial: its state, steps, examples, FLOPs, seconds, time left and losses, as texts."""

    @abstractmethod
    def say_finished(self, label: str, seed: int, metrics: str) -> None:
        """metrics: headline metrics with their values."""

    def on_step(self, label: str, seed: int) -> OnStep:
        def show(progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
            if progress.step % 5 == 0 or reached >= 1:
                texts = cells(progress, reached, losses)
                self.show(label, seed, **{name: texts[name] for name in COLUMNS if name in texts})

        return show

    def scoring(self, label: str, seed: int) -> None:
        self.show(label, seed, state="scoring", left="")

    def finished(self, label: str, seed: int, scores: Mapping[str, Score]) -> None:
        shown = headlines(scores.values())[:MAX_METRICS]
        metrics = ", ".join(f"{score.name.removeprefix('test/')} {number(score.unit, score.value)}" for score in shown)
        self.say_finished(label, seed, metrics)


class Display(ProgressReporter):
    """Shows what each arm is at, and its headline metrics as they come."""

    def __init__(self, labels: Sequence[str], seeds: Sequence[int], budget: Budget, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.budget = budget
        self.state: dict[tuple[str, int], dict[str, str]] = {
            (label, seed): dict.fromkeys(COLUMNS, "") | {"state": "waiting"} for seed in seeds for label in labels
        }
        self.live = Live(console=self.console, auto_refresh=False, get_renderable=self.table)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def table(self) -> Table:
        width = self.console.width
        names = [name for name in COLUMNS if width >= MIN_WIDTHS.get(name, 0)]
        table = Table(caption=f"budget {self.budget} a run", box=None, pad_edge=False)
        table.add_column("recipe", overflow="ellipsis", no_wrap=True, max_width=max(width // 4, 10))
        for heading in ("seed", *(COLUMNS[name] for name in names)):
            table.add_column(heading, overflow="fold", no_wrap=heading not in ("losses", "test metrics"))
        for (label, seed), shown in self.state.items():
            cells = {name: escape(shown[name]) if name != "state" else shown[name] for name in names}
            if width < MIN_WIDTHS["metrics"]:  # one column for both
                cells["losses"] = escape(shown["metrics"]) or cells["losses"]
            table.add_row(escape(label), str(seed), *cells.values())
        return table

    def timing(self, labels: Sequence[str], seeds: Sequence[int]) -> None:
        """Say that arms are being timed."""
        for label in labels:
            for seed in seeds:
                self.show(label, seed, state="timing")

    def timed(self, steps: Mapping[str, int], seeds: Sequence[int], warning: str = "") -> None:
        """Say how many steps a run of each arm has, and what is wrong with them."""
        for label, count in steps.items():
            for seed in seeds:
                self.show(label, seed, state="waiting", steps=f"of {count:,}")
        listed = ", ".join(f"{label}: {count:,}" for label, count in steps.items())
        self.console.print(f"Steps of a run ({self.budget}): {listed}", highlight=False, soft_wrap=True)
        if warning:
            self.console.print(f"[yellow]{warning}", highlight=False, soft_wrap=True)

    def show(self, label: str, seed: int, **changes: str) -> None:
        self.state[label, seed] |= changes
        if self.console.is_terminal:
            self.live.refresh()

    def say_finished(self, label: str, seed: int, metrics: str) -> None:
        if self.state[label, seed]["state"] == FINISHED:
            return
        self.show(label, seed, state=FINISHED, left="", metrics=metrics)
        if not self.console.is_terminal:
            self.console.print(f"{label}, seed {seed}: finished{': ' + metrics if metrics else ''}", highlight=False)
