"""Training: trainer, optimizer, checkpoints, and the run that results."""

from polymodal.training.run import Run, load_run
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.trainer import Interrupted, train

__all__ = ["Interrupted", "Run", "RuntimeConfig", "load_run", "train"]
