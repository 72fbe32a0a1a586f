"""Training: trainer, optimizer, checkpoints, and the run that results."""

from polymodal.training.run import Run, load_run
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.trainer import Interrupted, Paused, train

__all__ = ["Interrupted", "Paused", "Run", "RuntimeConfig", "load_run", "train"]
