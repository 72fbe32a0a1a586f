"""The report of `polymodal data` on a terminal: at most 100 columns wide, readable at 60."""

from __future__ import annotations

import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polymodal.corpora.data_report import ColumnReport, DataReport

MAX_WIDTH, MIN_WIDTH = 100, 40
MAX_UNUSED, MAX_NAMED = 8, 12  # columns without a modality that get a line, and others that are named


def print_report(name: str, report: DataReport, lacks: Mapping[str, tuple[str, ...]]) -> None:
    """Print what was found. lacks: what the data lacks for each recipe."""
    print_table_of(name, report.format, report.rows, report.columns)
    _print_problems(report)
    _print_splits(report)
    _print_recipes(lacks)
    print()


def print_table_of(name: str, format: str, rows: int, columns: Iterable[ColumnReport]) -> None:
    """Print the format, and a line of each column that has a modality or is among the first of the others."""
    _print_folded(f"{name}: {rows:,} rows, format {format}")
    columns = list(columns)
    used = [column for column in columns if column.modality]
    unused = [column for column in columns if not column.modality]
    shown = used + unused[:MAX_UNUSED]
    widths = [max(len(head), *(len(cell) for cell in cells)) for head, cells in _cells(shown)] if shown else []
    print()
    names, kinds = (min(width, _width() // 4) for width in widths[:2]) if widths else (0, 0)
    for column in (None, *shown):
        cells = ("column", "modality", "filled", "examples") if column is None else _row(column)
        lead = f"{_cut(cells[0], names):<{names}}  {_cut(cells[1], kinds):<{kinds}}  {cells[2]:>6}  "
        print(lead + _cut(cells[3], _width() - len(lead)))
    if len(unused) > MAX_UNUSED:
        rest = [column.name for column in unused[MAX_UNUSED:]]
        more = " ..." if len(rest) > MAX_NAMED else ""
        _print_folded(f"{len(rest):,} more without a modality: {', '.join(rest[:MAX_NAMED])}{more}")


def _cells(shown: list[ColumnReport]) -> list[tuple[str, list[str]]]:
    rows = [_row(column) for column in shown]
    heads = ("column", "modality", "filled", "examples")
    return [(head, [row[place] for row in rows]) for place, head in enumerate(heads)]


def _row(column: ColumnReport) -> tuple[str, str, str, str]:
    kind = column.modality or f"- ({column.stored})"
    return " ".join(column.name.split()), kind, f"{column.filled:.0%}", " | ".join(column.examples) or "-"


def _print_problems(report: DataReport) -> None:
    lines = [f"{one['count']:,} left out: {one['reason']} ({one['example']})" for one in report.skipped]
    lines += [
        f"{column.unreadable:,} of {column.sampled:,} sampled values of '{column.name}' cannot be decoded "
        f"({column.reason})"
        for column in report.columns
        if column.unreadable
    ]
    _print_list("Skipped", lines or ["nothing"])
    _print_list("Notes", report.notes)


def _print_splits(report: DataReport) -> None:
    sizes = ", ".join(f"{split} {size:,}" for split, size in report.sizes.items())
    lines = [f"{sizes}; by {report.rule}", *map(str, report.leaks)]
    if not report.leaks and not report.streamed and len(report.sizes) > 1:
        lines.append("no leaks found")
    if report.leaks:
        lines.append("A column 'group' with equal values for related rows keeps these in one split.")
    _print_list("Splits", lines)


def _print_recipes(lacks: Mapping[str, tuple[str, ...]]) -> None:
    by_lack: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, what in lacks.items():
        by_lack[what].append(name)
    trained = by_lack.pop((), [])
    _print_list("Recipes that train on it", [", ".join(trained) or "none"])
    lines = [f"{', '.join(names)}: {'; '.join(what)}" for what, names in sorted(by_lack.items())]
    _print_list("What it lacks for others", lines)


def _print_list(title: str, lines: Iterable[str]) -> None:
    lines = list(lines)
    if lines:
        print(f"\n{title}")
        for line in lines:
            _print_folded(line, "  ")


def _print_folded(text: str, indent: str = "") -> None:
    """Print in lines of the terminal's width; paths that are longer are not broken."""
    folded = textwrap.fill(
        text,
        _width(),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    print(folded)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."


def _width() -> int:
    """Width of the terminal within bounds; 80 where there is none, unless COLUMNS says otherwise."""
    return max(MIN_WIDTH, min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH))
