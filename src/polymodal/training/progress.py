"""The progress bar of a single run: share of the budget, rate, time left, and every named loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from polymodal.training.loop import Progress as Where
from polymodal.training.trainer import OnStep


def cells(progress: Where, reached: float, losses: Mapping[str, Any]) -> dict[str, Any]:
    """What a display says of a run: share done, examples a second, minutes and seconds left, losses."""
    left = int(progress.seconds * (1 - reached) / max(reached, 1e-9))
    return {
        "state": f"{reached:.0%}",
        "rate": f"{progress.examples / max(progress.seconds, 1e-9):,.0f}",
        "left": f"{left // 60}:{left % 60:02d}",
        "losses": "  ".join(f"{name} {float(value):.3f}" for name, value in losses.items()),
    }


@contextmanager
def progress_bar(title: str) -> Iterator[OnStep]:
    """A bar on standard error while the block runs; where that is no terminal, a line for every tenth of the budget."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}  {task.fields[rate]} examples/s  {task.fields[left]} left  "),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, state="", rate="", left="", losses="")
        tenths = 0

        def show(progress: Where, reached: float, losses: Mapping[str, Any]) -> None:
            nonlocal tenths
            if console.is_terminal:
                if progress.step % 5 == 0 or reached >= 1:
                    bar.update(task, completed=reached, **cells(progress, reached, losses))
            elif int(10 * reached) > tenths:
                tenths = int(10 * reached)
                said = cells(progress, reached, losses)
                line = f"{title}: {said['state']}, {said['rate']} examples/s, {said['left']} left, {said['losses']}"
                console.print(line, highlight=False, soft_wrap=True)

        yield show
