"""Which method is better, and is a paper's claim true here? Paired seeds, intervals, verdicts, reports."""

from polymodal.reproduce.claim import reproduce
from polymodal.reproduce.compare import Arm, Comparison, compare

__all__ = ["Arm", "Comparison", "compare", "reproduce"]
