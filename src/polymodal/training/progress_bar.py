"""Progress bar of a run: used fraction of the budget, stage, throughput, time left, and every named loss."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.live import Live

from polymodal.notebook import is_notebook
from polymodal.training.progress import Progress
from polymodal.training.run_display import RunDisplay
from polymodal.training.trainer import OnStep


def cells(progress: Progress, reached: float, losses: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of a progress display: fraction done, steps, examples, FLOPs and seconds so far, examples and
    tokens per second, packing efficiency, memory, time left, stage, losses."""
    left = int(progress.seconds * (1 - reached) / max(reached, 1e-9))
    seconds, memory = max(progress.seconds, 1e-9), memory_in_use()
    return {
        "state": f"{reached:.0%}",
        "steps": f"{progress.step:,}",
        "examples": f"{progress.examples:,}",
        "flops": f"{progress.flops:.2g}",
        "seconds": f"{progress.seconds:.0f}",
        "rate": f"{progress.examples / seconds:,.0f}",
        "tokens": f"{progress.tokens / seconds:,.0f}",
        "packing_efficiency": f"{progress.packing_efficiency:.0%}",
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "",
        "left": f"{left // 60}:{left % 60:02d}",
        "stage": progress.stage_name,
        "losses": "  ".join(f"{name} {float(value):.3f}" for name, value in losses.items()),
    }


def speed(shown: Mapping[str, str]) -> str:
    """Return throughput and memory in a few words."""
    tokens = f", {shown['tokens']} tokens/s ({shown['packing_efficiency']} full)" if shown["tokens"] != "0" else ""
    memory = f", {shown['memory']}" if shown["memory"] else ""
    return f"{shown['rate']} examples/s{tokens}{memory}"


def memory_in_use() -> int:
    """Return the peak memory in bytes: of the GPU, or of the process without one; 0 on Windows, which does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def progress_bar(title: str) -> Iterator[OnStep]:
    """Show a progress bar on standard error, or below the cell of a notebook; without a terminal, print a line per
    tenth of the budget and per stage."""
    if is_notebook():
        with _notebook_bar(title) as draw:
            yield draw
        return
    console = Console(stderr=True)
    display = RunDisplay(title)
    live = Live(display, console=console, refresh_per_second=4)
    tenths, stage = 0, ""

    def show(progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
        nonlocal tenths, stage
        if console.is_terminal:
            if progress.step % 5 == 0 or reached >= 1 or not display.shown:
                display.shown, display.reached = cells(progress, reached, losses), reached
                display.speed = speed(display.shown)
        elif int(10 * reached) > tenths or progress.stage_name != stage:
            tenths, stage = int(10 * reached), progress.stage_name
            shown = cells(progress, reached, losses)
            of_stage = f", {stage}" if stage else ""
            line = f"{title}{of_stage}: {shown['state']}, {shown['left']} left, {speed(shown)}, {shown['losses']}"
            console.print(line, highlight=False, soft_wrap=True)

    with live if console.is_terminal else nullcontext():
        yield show


@contextmanager
def _notebook_bar(title: str) -> Iterator[OnStep]:
    """Show a bar below the cell, in plain HTML, which needs no widgets; it is redrawn at most twice a second."""
    from IPython.display import HTML, display

    handle = display(HTML(f"<progress value='0' max='1'></progress> {html.escape(title)}"), display_id=True)
    drawn = 0.0

    def show(progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
        nonlocal drawn
        if time.monotonic() - drawn < 0.5 and reached < 1:
            return
        drawn, shown = time.monotonic(), cells(progress, reached, losses)
        line = f"{title}: {shown['state']}, {shown['left']} left, {speed(shown)}, {shown['losses']}"
        handle.update(HTML(f"<progress value='{reached:.4f}' max='1'></progress> {html.escape(line)}"))

    yield show
