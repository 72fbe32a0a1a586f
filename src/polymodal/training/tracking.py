"""Experiment tracking: TensorBoard, or Weights & Biases or trackio where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from polymodal.errors import UserError
from polymodal.training.run import Run

FOLDER = "tensorboard"


class Tracker:
    """Logs metrics to a tracker. kind: `tensorboard`, `wandb`, `trackio`, or `none`."""

    def __init__(self, kind: str, run: Run, step: int):
        """Open the tracker. step: where the run resumes; later metrics of an earlier attempt are purged."""
        self.board: Any = None
        self.other: Any = None
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            assert run.directory is not None
            self.board = SummaryWriter(str(run.directory / FOLDER), purge_step=step)
        elif kind != "none":
            try:
                package = importlib.import_module(kind)
            except ImportError as error:
                raise UserError(f"--logger {kind} needs the package '{kind}': pip install {kind}") from error
            # Both have the same three functions: trackio is a drop-in replacement of wandb.
            self.other = package.init(project="polymodal", name=run.name, config=run.record)

    def log(self, entry: dict[str, Any]) -> None:
        """Log one entry of the history; metrics are named by their path in it, such as losses/global."""
        figures = {name: value for name, value in flatten(entry).items() if name != "step"}
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, entry["step"])
        if self.other is not None:
            self.other.log(figures | {"step": entry["step"]})

    def close(self) -> None:
        if self.board is not None:
            self.board.close()
        if self.other is not None:
            self.other.finish()


def flatten(entry: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Flatten a nested dictionary to numbers by their paths."""
    numbers: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, dict):
            numbers |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[prefix + name] = value
    return numbers
