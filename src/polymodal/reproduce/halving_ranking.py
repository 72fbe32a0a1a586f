"""Who is better in a tuning: results at the end of a rung, ties between them, and how many go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polymodal.evaluation import Score
from polymodal.evaluation.seeds import paired_difference
from polymodal.evaluation.statistics import headlines
from polymodal.types import Budget

DIVERGED, OUT_OF_MEMORY = "diverged", "out of memory"


@dataclass(frozen=True)
class Judged:
    """A candidate at the end of a rung. failure: `DIVERGED` or `OUT_OF_MEMORY`, else ''. reason: of a failure."""

    scores: Mapping[str, Score]
    seconds: float
    failure: str = ""
    reason: str = ""


@dataclass
class Ranking:
    """Compares candidates by one metric, the headline one of the first scores."""

    metric: str = ""
    higher_is_better: bool = True

    def begin(self, scores: Mapping[str, Score]) -> Score:
        """Choose the metric; return its score."""
        score = next(iter(headlines(scores.values())), next(iter(scores.values())))
        self.metric, self.higher_is_better = score.name, score.higher_is_better
        return score

    def quality(self, judged: Judged) -> float:
        """Return a number that is higher for the better one, and -inf for one that failed."""
        score = judged.scores.get(self.metric)
        if judged.failure or score is None or not math.isfinite(score.value):
            return -math.inf
        return score.value if self.higher_is_better else -score.value

    def ties(self, one: Judged, other: Judged) -> bool:
        """Return whether the difference is within its 95 % interval over validation rows; with one row, always."""
        if -math.inf in (self.quality(one), self.quality(other)):
            return False
        scores = one.scores[self.metric], other.scores[self.metric]
        units = {len(score.clusters) for score in scores}
        if len(units) > 1 or units & {0, 1}:
            return True
        difference = paired_difference(scores[:1], scores[1:])
        return difference.low <= 0 <= difference.high


def affordable(record: Mapping[str, Any], sizes: Sequence[int], rung: int, size: int) -> int:
    """Return how many candidates go on from a rung: fewer than `size` where a budget in time would not last, at least
    one.

    record: of the tuning, with the seconds of each candidate so far. sizes: the candidates of each rung as planned. The
    cost is counted in whole trainings, because candidates may differ in the number and the cost of their steps.
    """
    seconds, eta = Budget.parse(record["budget"]).seconds, record["eta"]
    if seconds is None:
        return size
    last = [(one["rungs"][-1], one["whole_steps"]) for one in record["candidates"]]
    used = sum(held["seconds"] for held, _ in last)
    a_training = used / max(sum(held["step"] / whole for held, whole in last), 1e-9)
    ends = [eta ** -(len(sizes) - 1 - number) for number in range(len(sizes))]
    spans = [end - begin for begin, end in zip(ends[rung:], ends[rung + 1 :], strict=False)]

    def cost(count: int) -> float:
        planned = zip(sizes[rung + 1 :], spans, strict=True)
        return a_training * sum(min(count, limit) * span for limit, span in planned)

    return next((count for count in range(size, 1, -1) if used + cost(count) <= seconds), 1)


def all_failed(failures: set[str]) -> str:
    """Return what to do where no candidate of a rung has a result."""
    if failures == {OUT_OF_MEMORY}:
        return "No candidate fits into the memory; take a smaller --batch-size, --micro-batch, or a smaller --size."
    if DIVERGED in failures:
        return "All candidates diverged; put smaller learning rates into the --grid."
    return "No candidate has a finite validation metric; put smaller learning rates into the --grid."
