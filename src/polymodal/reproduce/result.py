"""What a comparison measured: arms, their trials, and scores that are paired by seed and test unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from polymodal.corpora.corpus import Corpus
from polymodal.evaluation import Score
from polymodal.evaluation.seeds import aggregate_seeds, are_copies, paired_difference, seed_and_unit_errors
from polymodal.evaluation.statistics import Estimate, Unit, headlines
from polymodal.evaluation.units import number, scale
from polymodal.notebook import html_table, text_table
from polymodal.training import Run
from polymodal.training.trainer import command_line
from polymodal.types import Budget

if TYPE_CHECKING:
    import pandas as pd

SHOWN_SCORES = 3  # of a comparison's representation


@dataclass(frozen=True)
class Arm:
    """A recipe under the name that it has in this comparison."""

    label: str
    recipe: Any

    @property
    def folder(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]+", "_", self.label).strip("._") or "arm"


@dataclass(frozen=True)
class Trial:
    """One arm at one seed: its run, and its scores by name."""

    arm: Arm
    seed: int
    run: Run
    scores: dict[str, Score]

    def __repr__(self) -> str:
        return f"{self.arm.label}, seed {self.seed}: {len(self.scores)} scores of {self.run!r}"


def flops_of(run: Run) -> float:
    """Floating-point operations of the training of a run."""
    return run.record["flops_an_example"] * run.record["examples"]


@dataclass(frozen=True)
class ComparisonResult:
    """All trials, seed by seed in the order of the arms.

    start_steps: of what all arms begin with, where there is such a run and its budget is a number of steps.
    start_scores: of that run, one mapping a seed, where they were wanted.
    """

    arms: list[Arm]
    corpus: Corpus
    budget: Budget
    seeds: list[int]
    trials: list[Trial]
    directory: Path | None = None
    start_steps: int | None = None
    start_scores: Sequence[Mapping[str, float]] = ()

    def __repr__(self) -> str:
        return text_table(*self._summary())

    def _repr_html_(self) -> str:
        return html_table(*self._summary())

    def _summary(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headings and rows of a small table: an arm per row, with the first headline scores."""
        names = self.score_names if self.trials else []
        first = [score.name for score in headlines(self.trials[0].scores[name] for name in names)] or names
        shown = first[:SHOWN_SCORES]
        rows = [[arm.label, *(self._cell(arm, name) for name in shown)] for arm in self.arms]
        if shown:
            levels = [(self.unit(name), self.chance(name)) for name in shown]
            rows.append(["chance", *("-" if level is None else number(unit, level) for unit, level in levels)])
        title = f"{len(self.arms)} recipes on {self.corpus.name}, {self.budget} each, seeds {len(self.seeds)}"
        return title, ["recipe", *shown], rows

    def _cell(self, arm: Arm, name: str) -> str:
        estimate, unit = self.estimate(arm, name), self.unit(name)
        factor, digits = scale(unit, estimate.value)
        interval = ", ".join(f"{factor * end:.{digits}f}" for end in (estimate.low, estimate.high))
        return f"{number(unit, estimate.value)} [{interval}]"

    def to_frame(self) -> pd.DataFrame:
        """Return a row per recipe and score: mean over seeds, 95 % interval, chance, and the difference to the first
        recipe with its interval."""
        import pandas as pd

        rows = []
        for name in self.score_names if self.trials else ():
            for arm in self.arms:
                difference = self.difference(arm, name)
                rows.append(
                    {"recipe": arm.label, "score": name, "unit": self.unit(name)}
                    | self.estimate(arm, name)._asdict()
                    | {"chance": self.chance(name), "difference": difference.value}
                    | {"difference_low": difference.low, "difference_high": difference.high, "seeds": len(self.seeds)}
                )
        return pd.DataFrame(rows)

    def of(self, arm: Arm) -> list[Trial]:
        return [trial for trial in self.trials if trial.arm == arm]

    @property
    def score_names(self) -> list[str]:
        """The scores that every arm has, in the order of evaluation."""
        return [name for name in self.trials[0].scores if all(name in trial.scores for trial in self.trials)]

    def having(self, name: str) -> list[Arm]:
        """The arms that have this score: one without a decoder has none of it."""
        return [arm for arm in self.arms if all(name in trial.scores for trial in self.of(arm))]

    def unit(self, name: str) -> Unit:
        """The unit of a score, of which some arm may have none."""
        return next((trial.scores[name].unit for trial in self.trials if name in trial.scores), "percent")

    def estimate(self, arm: Arm, name: str) -> Estimate:
        """The mean over seeds, with its 95 % interval over seeds and test units."""
        return aggregate_seeds(self._scores(arm, name))

    def can_be_compared(self, name: str) -> bool:
        """Whether the baseline (the first arm) and the second one have this score."""
        return {arm.label for arm in self.arms[:2]} <= {arm.label for arm in self.having(name)}

    def difference(self, arm: Arm, name: str, baseline: Arm | None = None, level: float = 0.95) -> Estimate:
        """Arm minus baseline (the first arm, unless another is given), paired by seed and test unit.

        level: of the interval.
        """
        return paired_difference(self._scores(arm, name), self._scores(baseline or self.arms[0], name), level)

    def p_value(self, arm: Arm, name: str) -> float:
        """How likely a difference to the first arm that is as large would be by chance; two-sided, not corrected."""
        return seed_and_unit_errors(self._scores(arm, name), self._scores(self.arms[0], name)).p_value()

    def is_copy(self, arm: Arm) -> bool:
        """Whether an arm has the first one's score on every test unit at every seed, by all metrics.

        By one metric arms may agree without being copies, as two do that are right everywhere.
        """
        names = [name for name in self.trials[0].scores if {arm, self.arms[0]} <= {*self.having(name)}]
        return arm != self.arms[0] and all(
            are_copies(self._scores(arm, name), self._scores(self.arms[0], name)) for name in names
        )

    def by_seed(self, arm: Arm, name: str) -> dict[str, float]:
        """The score at every seed; seeds are texts, as in JSON."""
        return {str(trial.seed): trial.scores[name].value for trial in self.of(arm)}

    def test_units(self, name: str) -> int:
        return next((len(trial.scores[name].clusters) for trial in self.trials if name in trial.scores), 0)

    def chance(self, name: str) -> float | None:
        """The chance level, on average where seeds have tests of their own; None where it is not known."""
        levels = [trial.scores[name].chance for trial in self.trials if name in trial.scores]
        given = [level for level in levels if level is not None]
        return mean(given) if given else None

    def higher_is_better(self, name: str) -> bool:
        return next((trial.scores[name].higher_is_better for trial in self.trials if name in trial.scores), True)

    def _scores(self, arm: Arm, name: str) -> list[Score]:
        return [trial.scores[name] for trial in self.of(arm)]

    def cost(self, arm: Arm) -> dict[str, float]:
        """Mean seconds, steps, examples and FLOPs of a run; parameters; FLOPs of an example."""
        records = [trial.run.record | {"flops": flops_of(trial.run)} for trial in self.of(arm)]
        keys = ("seconds", "steps", "examples", "flops", "parameters", "flops_an_example", "skipped")
        return {key: mean(record[key] for record in records) for key in keys}

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, for `results.json`."""
        one = self.trials[0].scores
        return {
            "command": command_line(),
            "corpus": dict(self.corpus.choices),
            "budget": str(self.budget),
            "start_steps": self.start_steps,
            "seeds": self.seeds,
            "interval": "95 %, over seeds and test units; not corrected for the number of metrics and arms",
            "arms": {arm.label: self.of(arm)[0].run.record["recipe"] | {"cost": self.cost(arm)} for arm in self.arms},
            "scores": {
                name: {
                    "chance": self.chance(name),
                    "higher_is_better": one[name].higher_is_better,
                    "unit": one[name].unit,
                    "test_units": len(one[name].clusters),
                    "arms": {
                        arm.label: self.estimate(arm, name)._asdict()
                        | {"by_seed": self.by_seed(arm, name)}
                        | {"difference_to_first": self.difference(arm, name)._asdict() | {"copy": self.is_copy(arm)}}
                        for arm in self.arms
                    },
                }
                for name in self.score_names
            },
            "runs": [
                {"arm": trial.arm.label, "seed": trial.seed, "directory": str(trial.run.directory or "")}
                | {key: trial.run.record[key] for key in ("steps", "examples")}
                | {"flops": flops_of(trial.run)}
                | {key: trial.run.record[key] for key in ("seconds", "command")}
                for trial in self.trials
            ],
        }
