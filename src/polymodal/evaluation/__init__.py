"""What a trained method can do, in figures with intervals and with the level of chance beside them."""

from polymodal.evaluation.evaluate import evaluate, validation
from polymodal.evaluation.statistics import Score

__all__ = ["Score", "evaluate", "validation"]
