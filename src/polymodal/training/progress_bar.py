"""Progress bar of a run: used fraction of the budget, stage, throughput, time left, and every named loss."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polymodal.training.progress import Progress
from polymodal.training.trainer import OnStep

MIN_BAR, MAX_BAR = 8, 40  # columns


def cells(progress: Progress, reached: float, losses: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of a progress display: fraction done, steps, examples, FLOPs and seconds so far, examples and
    tokens per second, packing efficiency, memory, time left, stage, losses."""
    left = int(progress.seconds * (1 - reached) / max(reached, 1e-9))
    seconds = max(progress.seconds, 1e-9)
    return {
        "state": f"{reached:.0%}",
        "steps": f"{progress.step:,}",
        "examples": f"{progress.examples:,}",
        "flops": f"{progress.flops:.2g}",
        "seconds": f"{progress.seconds:.0f}",
        "rate": f"{progress.examples / seconds:,.0f}",
        "tokens": f"{progress.tokens / seconds:,.0f}",
        "packing_efficiency": f"{progress.packing_efficiency:.0%}",
        "memory": f"{memory_in_use() / 2**30:.1f} GiB",
        "left": f"{left // 60}:{left % 60:02d}",
        "stage": progress.stage_name,
        "losses": "  ".join(f"{name} {float(value):.3f}" for name, value in losses.items()),
    }


def speed(shown: Mapping[str, str]) -> str:
    """Return throughput and memory in a few words."""
    tokens = f", {shown['tokens']} tokens/s ({shown['packing_efficiency']} full)" if shown["tokens"] != "0" else ""
    return f"{shown['rate']} examples/s{tokens}, {shown['memory']}"


def memory_in_use() -> int:
    """Return the peak memory in bytes: of the GPU, or of the process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass
class RunDisplay:
    """What a terminal shows of a run: a line with title, stage, bar, time left and speed, and the losses below it.

    In a narrow terminal the speed is left out, then the bar; a title that is too long is cut.
    """

    title: str
    reached: float = 0.0
    shown: Mapping[str, str] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        stage = self.shown.get("stage", "")
        title = f"{self.title}, {stage}" if stage else self.title
        if not self.shown:
            yield Text(title, no_wrap=True, overflow="ellipsis")
            return
        rate, left = speed(self.shown), f"{self.shown['left']} left"
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


@contextmanager
def progress_bar(title: str) -> Iterator[OnStep]:
    """Show a progress bar on standard error; without a terminal, print a line per tenth of the budget and per stage."""
    console = Console(stderr=True)
    display = RunDisplay(title)
    live = Live(display, console=console, refresh_per_second=4)
    tenths, stage = 0, ""

    def show(progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
        nonlocal tenths, stage
        if console.is_terminal:
            if progress.step % 5 == 0 or reached >= 1 or not display.shown:
                display.shown, display.reached = cells(progress, reached, losses), reached
        elif int(10 * reached) > tenths or progress.stage_name != stage:
            tenths, stage = int(10 * reached), progress.stage_name
            shown = cells(progress, reached, losses)
            of_stage = f", {stage}" if stage else ""
            line = f"{title}{of_stage}: {shown['state']}, {shown['left']} left, {speed(shown)}, {shown['losses']}"
            console.print(line, highlight=False, soft_wrap=True)

    with live if console.is_terminal else nullcontext():
        yield show
