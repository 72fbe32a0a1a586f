"""Output of commands: tables, JSON, sizes, progress."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MAX_SHORT, MIN_TEXT = 28, 18  # characters of cells that are not wrapped, and of a line of those that are


def terminal() -> Any:
    """Return a console without line wrapping, so that commands in the output can be copied."""
    from rich.console import Console

    return Console(soft_wrap=True)


def table_console() -> Any:
    """Return a console for tables: as wide as the terminal, and 200 columns elsewhere unless COLUMNS says how many."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=200)


def print_table(headings: list[str], rows: list[list[str]], right: Any = ()) -> None:
    """Print a table; where its texts would be broken into pieces, a paragraph per row. right: indices of right-aligned
    (numeric) columns."""
    from rich.table import Table

    console = table_console()
    widths = [max(len(line) for row in [headings, *rows] for line in row[n].split("\n")) for n in range(len(headings))]
    texts = [width for width in widths[1:] if width > MAX_SHORT]  # columns that may be wrapped
    room = console.width - sum(widths) + sum(texts) - (len(headings) - 1)
    if len(headings) > 2 and room < (min(MIN_TEXT * len(texts), sum(texts)) if texts else 0):
        _print_paragraphs(console, headings, rows, widths)
        return
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        short = index == 0 or (widths[index] <= MAX_SHORT and len(headings) > 2)
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold", no_wrap=short)
    for row in rows:
        table.add_row(*row)
    console.print(table, highlight=False, markup=False)


def _print_paragraphs(console: Any, headings: list[str], rows: list[list[str]], widths: list[int]) -> None:
    """Print the rows as paragraphs: the first cell, the short ones under their headings, then the long ones."""
    for row in rows:
        each = [(f"{h} " if h else "", cell, size) for h, cell, size in zip(headings, row, widths, strict=True) if cell]
        first, rest = each[0], each[1:]
        lines = [first[1], " · ".join(f"{h}{cell}" for h, cell, size in rest if size <= MAX_SHORT)]
        lines += [cell for _, cell, size in rest if size > MAX_SHORT]
        for number, line in enumerate(filter(None, lines)):
            indent = "  " if number else ""
            console.print(
                textwrap.fill(line, console.width, initial_indent=indent, subsequent_indent="  "),
                highlight=False,
                markup=False,
                style="bold" if not number else None,
            )


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count else "-"


def said_of_unreadable(skipped: dict[str, str]) -> str:
    """Return a note on unreadable examples; '' for none. skipped: key -> reason."""
    return f"; {len(skipped)} could not be read: {', '.join(list(skipped)[:3])}" if skipped else ""


def say_which_weights(run: Any) -> None:
    """Say in a line on standard error that a run holds its best weights, where these are not the last ones."""
    record = run.record
    kept, steps = record.get("kept"), record.get("steps")
    if record.get("keep") != "best" or not isinstance(kept, dict) or kept.get("step") in (None, steps):
        return
    best = f"of step {kept['step']:,}, the best on validation ({kept.get('metric')})"
    print(f"The weights of {run.name} are those {best}, not the last, of step {steps:,}.", file=sys.stderr)


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


def say_of_paths(*words: str | None) -> None:
    """Print which of the words are paths although a built-in corpus has the same name."""
    from polymodal.corpora.about import is_built_in, names

    for word in filter(None, words):
        if word in names() and not is_built_in(word):
            print(f"'{word}' is the file or folder here, and not the built-in corpus of this name.", file=sys.stderr)


def split_sizes(corpus: Any) -> str:
    """Return the splits of a corpus with their numbers of examples: 'train 1,419, test 328'."""
    return ", ".join(f"{split} {len(rows):,}" for split, rows in corpus.splits.items())
