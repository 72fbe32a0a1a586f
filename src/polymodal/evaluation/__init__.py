"""What a trained method can do, in figures with intervals and with the level of chance beside them."""

from polymodal.evaluation.statistics import Score
from polymodal.evaluation.suite import evaluate, validation

__all__ = ["Score", "evaluate", "validation"]
