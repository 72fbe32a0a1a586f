"""What a trained method can do, as metrics with intervals and chance levels."""

from polymodal.evaluation.evaluate import evaluate, validation, write_plots
from polymodal.evaluation.statistics import Score

__all__ = ["Score", "evaluate", "validation", "write_plots"]
