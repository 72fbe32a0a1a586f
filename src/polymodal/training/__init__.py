"""The loop, its optimiser, its checkpoints, and what a run leaves behind."""

from polymodal.training.execution import Execution
from polymodal.training.run import Run, load_run
from polymodal.training.trainer import Interrupted, train

__all__ = ["Execution", "Interrupted", "Run", "load_run", "train"]
