"""Index of the runs below a folder, and plots of the history of one, from their records alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from polymodal.errors import UserError
from polymodal.training.run import HISTORY, RECORD, read_record
from polymodal.training.run_files import read_entries


def find_runs(root: Path) -> list[dict[str, Any]]:
    """Return one row per run, sorted by path. Raises UserError when the folder does not exist."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    rows = []
    for path in sorted(root.rglob(RECORD)):
        try:
            record = read_record(path.parent)
            history = read_history(path.parent)
            last = history[-1] if history else {}
            rows.append(
                {
                    "run": str(path.parent),
                    "recipe": record["recipe"]["name"],
                    "corpus": data_name(record),
                    "budget": record["budget"],
                    "seed": record["seed"],
                    "state": state_of(record),
                    "steps": record.get("steps", last.get("step", 0)),
                    "seconds": record.get("seconds", last.get("seconds", 0.0)),
                    "parameters": record.get("parameters", 0),
                    "best": best_metrics(history, record),
                    "metrics": record.get("metrics", {}),
                }
            )
        except (UserError, KeyError, TypeError):
            continue  # some other program's run.json
    return rows


def data_name(record: dict[str, Any]) -> str:
    """Return the corpus or path that a run was trained on."""
    return record["corpus"].get("corpus") or record["corpus"].get("data", "")


def state_of(record: dict[str, Any]) -> str:
    """Return `running`, `interrupted`, `killed` or `finished`. One on another machine, or Windows, is assumed alive."""
    process = record.get("process", {})
    is_here = process.get("host") == socket.gethostname() and os.name == "posix"  # os.kill stops processes on Windows
    if record["state"] == "running" and is_here:
        try:
            os.kill(process["pid"], 0)
        except ProcessLookupError:
            return "killed"
        except PermissionError:
            pass  # alive, and somebody else's
    return record["state"]


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Return the history of a run, as of its last checkpoint or its end."""
    path = directory / HISTORY
    if not path.is_file():
        return []
    return read_entries(path)


def best_metrics(history: list[dict[str, Any]], record: dict[str, Any]) -> dict[str, float]:
    """Return the best value of every validation metric, by the direction that the run's record has for it."""
    best: dict[str, float] = {}
    kinds = record.get("metrics", {})
    for entry in history:
        for name, value in entry.get("validation", {}).items():
            better = max if kinds.get(name, {}).get("higher_is_better", True) else min
            best[name] = better(value, best.get(name, value))
    return best


def curves(history: list[dict[str, Any]], record: dict[str, Any]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the plots of a history: losses, each validation task and the learning rate, as (step, value) by name."""
    kinds = record.get("metrics", {})
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for entry in history:
        step = entry["step"]
        for name, value in entry.get("losses", {}).items():
            drawn.setdefault("losses", {}).setdefault(name, []).append((step, value))
        for name, value in entry.get("validation", {}).items():
            task, _, metric = name.rpartition("/")
            if kinds.get(name, {}).get("unit") != "rank":
                drawn.setdefault(task, {}).setdefault(metric, []).append((step, value))
        if "learning_rate" in entry:
            drawn.setdefault("learning rate", {}).setdefault("", []).append((step, entry["learning_rate"]))
    return {title: drawn[title] for title in sorted(drawn, key=lambda title: (title == "learning rate", title))}


def plot(title: str, lines: dict[str, list[tuple[float, float]]], width: int, height: int = 15) -> str:
    """Return a line plot for a terminal, without colors; every line has its own marker."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    for marker, (name, points) in zip(("braille", "*", "o", "+", "x"), lines.items(), strict=False):
        steps, values = zip(*points, strict=True)
        plotext.plot(steps, values, label=name or None, marker=marker)
    plotext.title(title)
    plotext.xlabel("step")
    return plotext.uncolorize(plotext.build())
