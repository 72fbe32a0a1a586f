"""What a trained method can do, as metrics with intervals and chance levels."""

from polymodal.evaluation.benchmark import score_on_benchmark
from polymodal.evaluation.evaluate import Scored, evaluate, evaluate_with_protocols, validation, write_plots
from polymodal.evaluation.statistics import Score

__all__ = ["Score", "Scored", "evaluate", "evaluate_with_protocols", "score_on_benchmark", "validation", "write_plots"]
