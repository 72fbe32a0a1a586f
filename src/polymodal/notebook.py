"""Tables and images as text and HTML, for the representations of objects in terminals and notebooks."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Sequence
from typing import Any

MAX_ROWS = 12  # of a table as text

Table = Sequence[Sequence[object]]


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which can display HTML."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


def text_table(title: str, headings: Sequence[str], rows: Table) -> str:
    """Return a table with aligned columns: the title, the headings and at most `MAX_ROWS` rows."""
    shown = [list(headings), *([str(cell) for cell in row] for row in rows[:MAX_ROWS])]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in shown)
    ]
    more = [f"... and {len(rows) - MAX_ROWS} more; to_frame() has all"] if len(rows) > MAX_ROWS else []
    return "\n".join(line.rstrip() for line in [title, *lines, *more])


def html_table(title: str, headings: Sequence[str], rows: Table) -> str:
    """Return a small HTML table with a caption; without headings, the first cell of a row is its heading."""
    head = "".join(f"<th>{_escaped(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(_cells(row, not headings))}</tr>" for row in rows)
    caption = f"<caption style='text-align: left'><b>{_escaped(title)}</b></caption>"
    return f"<table>{caption}{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def html_image(png: bytes, title: str = "") -> str:
    """Return an image that holds its own data."""
    data = base64.b64encode(png).decode()
    return f"<img src='data:image/png;base64,{data}' title='{_escaped(title)}' style='margin: 2px'>"


def _cells(row: Sequence[object], first_is_heading: bool) -> list[str]:
    cells = [f"<td>{_escaped(cell)}</td>" for cell in row]
    if first_is_heading and row:
        cells[0] = f"<th style='text-align: left'>{_escaped(row[0])}</th>"
    return cells


def _escaped(value: object) -> str:
    return html.escape(str(value), quote=True)
