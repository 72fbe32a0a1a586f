"""What a terminal of any width shows of a run in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MIN_BAR, MAX_BAR = 8, 40  # columns


@dataclass
class RunDisplay:
    """What a terminal shows of a run: a line with title, stage, bar, time left and speed, and the losses below it.

    In a narrow terminal the speed is left out, then the bar; a title that is too long is cut.
    """

    title: str
    reached: float = 0.0
    shown: Mapping[str, str] = field(default_factory=dict)
    speed: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        stage = self.shown.get("stage", "")
        title = f"{self.title}, {stage}" if stage else self.title
        if not self.shown:
            yield Text(title, no_wrap=True, overflow="ellipsis")
            return
        rate, left = self.speed, f"{self.shown['left']} left"
        room = width - len(self.shown["state"]) - len(left) - 4
        if stage and len(title) > room:
            title = stage
        rate = rate if len(title) + len(rate) + 2 + MIN_BAR <= room else ""
        bar = min(room - len(title) - len(rate) - 2 * bool(rate) - 2, MAX_BAR)
        line = Table.grid(padding=(0, 2, 0, 0))
        cells: list[Text | ProgressBar] = [Text(title, no_wrap=True, overflow="ellipsis")]
        if bar >= MIN_BAR:
            cells.append(ProgressBar(1.0, self.reached, width=bar))
        cells += [Text(text, no_wrap=True) for text in (self.shown["state"], left, rate) if text]
        line.add_row(*cells)
        yield line
        yield Text(_filled(self.shown["losses"].split("  "), width - 2))


def _filled(words: list[str], width: int) -> str:
    """Put losses on indented lines, none of which is broken within."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 2 + len(word) > width:
            lines.append("")
        lines[-1] += f"  {word}" if lines[-1] else word
    return "\n".join(f"  {line}" for line in lines)
