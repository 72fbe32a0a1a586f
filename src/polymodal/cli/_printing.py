"""Output of commands: tables, JSON, sizes, progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def terminal() -> Any:
    """Return a console without line wrapping, so that commands in the output can be copied."""
    from rich.console import Console

    return Console(soft_wrap=True)


def print_table(headings: list[str], rows: list[list[str]], right: Any = ()) -> None:
    """Print a table. right: indices of right-aligned (numeric) columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table, highlight=False, markup=False)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count else "-"


def said_of_unreadable(skipped: dict[str, str]) -> str:
    """Return a note on unreadable examples; '' for none. skipped: key -> reason."""
    return f"; {len(skipped)} could not be read: {', '.join(list(skipped)[:3])}" if skipped else ""


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show a spinner with elapsed time, on terminals only."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(doing, total=None)
        yield


@contextmanager
def bar(description: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar with rate and time left; yields a function that reports (done, total)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text_column = TextColumn(f"{{task.completed:,}} of {{task.total:,}} {what}, {{task.fields[rate]:,.0f}} a second")
    columns = TextColumn("{task.description}"), BarColumn(), text_column, TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(description, total=0, rate=0.0)

        def report(done: int, total: int) -> None:
            rate = done / max(progress.tasks[0].elapsed or 0, 1e-9)
            progress.update(task, completed=done, total=total, rate=rate)

        yield report


def counted(tables: Any, what: str) -> Any:
    """Yield tables while showing the number of rows so far and the rate; the total is unknown."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text_column = TextColumn("{task.description} {task.completed:,} pages, {task.fields[rate]:,.0f} a second")
    with Progress(SpinnerColumn(), text_column, TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task(what, total=None, rate=0.0)
        for table in tables:
            progress.advance(task, len(table))
            progress.update(task, rate=progress.tasks[0].completed / max(progress.tasks[0].elapsed or 0, 1e-9))
            yield table
