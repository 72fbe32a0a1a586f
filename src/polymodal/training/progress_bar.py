"""Progress bar of a run: used fraction of the budget, throughput, time left, and every named loss."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich import progress as bars
from rich.console import Console

from polymodal.training.progress import Progress
from polymodal.training.trainer import OnStep


def cells(progress: Progress, reached: float, losses: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cells of a progress display: fraction done, steps, examples, FLOPs and seconds so far, examples and
    tokens per second, packing efficiency, memory, time left, losses."""
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def progress_bar(title: str) -> Iterator[OnStep]:
    """Show a progress bar on standard error; without a terminal, print a line per tenth of the budget."""
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TextColumn("{task.fields[state]}  {task.fields[left]} left  {task.fields[speed]}  "),
        bars.TextColumn("{task.fields[losses]}"),
    )
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, state="", left="", speed="", losses="")
        tenths = 0

        def show(progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
            nonlocal tenths
            if console.is_terminal:
                if progress.step % 5 == 0 or reached >= 1:
                    shown = cells(progress, reached, losses)
                    bar.update(task, completed=reached, speed=speed(shown), **shown)
            elif int(10 * reached) > tenths:
                tenths = int(10 * reached)
                shown = cells(progress, reached, losses)
                line = f"{title}: {shown['state']}, {shown['left']} left, {speed(shown)}, {shown['losses']}"
                console.print(line, highlight=False, soft_wrap=True)

        yield show
