"""Which method is better, and is a paper's claim true here? Paired seeds, intervals, verdicts, reports."""

from polymodal.reproduce.claim import reproduce
from polymodal.reproduce.compare import compare
from polymodal.reproduce.result import Arm, ComparisonResult

__all__ = ["Arm", "ComparisonResult", "compare", "reproduce"]
