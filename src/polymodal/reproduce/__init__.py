"""Which method is better, and is a paper's claim true here? Paired seeds, intervals, verdicts, reports."""

from polymodal.reproduce.claim import reproduce
from polymodal.reproduce.compare import compare
from polymodal.reproduce.result import Arm, Comparison

__all__ = ["Arm", "Comparison", "compare", "reproduce"]
