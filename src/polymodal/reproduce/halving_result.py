"""The result of a tuning: a table of all candidates, the best one and what ties with it, and its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal.errors import UserError, read_errors
from polymodal.evaluation.units import number, scale
from polymodal.notebook import html_table, text_table
from polymodal.training.run import Run, load_run
from polymodal.types import Budget

if TYPE_CHECKING:
    import pandas as pd

TUNING, BEST = "tuning.json", "best"
REQUIRED = ("state", "recipe", "corpus", "budget", "seed", "init", "eta", "grid", "candidates")


def field_of(name: str) -> str:
    """Return the last part of a hyper-parameter's name, as flags are written: learning-rate."""
    return name.rpartition(".")[2].replace("_", "-")


def text_of(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short(values: Mapping[str, Any]) -> str:
    """Return 'learning-rate 0.001, weight-decay 0.1'."""
    return ", ".join(f"{field_of(name)} {text_of(value)}" for name, value in values.items())


def flags_of(values: Mapping[str, Any]) -> Iterable[str]:
    """Yield the flags that give a recipe these values, exactly."""
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            first, dot, last = flag.rpartition(".")
            yield f"--{flag}" if value else f"--{first}{dot}no-{last}"
        else:
            yield f"--{flag} {value!r}" if isinstance(value, float) else f"--{flag} {value}"


@dataclass
class Tuning:
    """The result of `tune`. record: what `tuning.json` holds, with every result. directory: its folder."""

    record: dict[str, Any]
    directory: Path
    finished_before: bool = False

    @classmethod
    def read(cls, directory: Path | str) -> Tuning:
        """Read the result of a folder. Raises UserError for one that is damaged or missing."""
        directory = Path(directory)
        with read_errors(directory / TUNING, "tune again, into another folder"):
            record = json.loads((directory / TUNING).read_text(encoding="utf-8"))
            if missing := [name for name in REQUIRED if name not in record]:
                raise ValueError(f"it lacks {missing[0]}")
        return cls(record, directory)

    @property
    def best(self) -> dict[str, Any]:
        """The best values by the names of their hyper-parameters."""
        return dict(self.record["best"]["values"])

    @property
    def folder(self) -> Path:
        """The folder of the best run."""
        return self.directory / BEST

    @property
    def run(self) -> Run:
        """The best run, loaded."""
        if self.record["state"] != "finished":
            raise UserError(f"The tuning {self.directory} has not finished; the same command goes on.")
        return load_run(self.folder)

    @property
    def headings(self) -> list[str]:
        metric = self.record.get("metric", "").rpartition("/")[2]
        fields = [field_of(name).replace("-", "\n") for name in self.record["grid"]]
        return ["#", *fields, "steps", metric, "95 %\ninterval", "result"]

    @property
    def rows(self) -> list[list[str]]:
        """A row per candidate, the best first: what trained longest, and then by its score there."""
        sign = 1 if self.record.get("higher_is_better", True) else -1

        def place(one: Mapping[str, Any]) -> tuple[Any, ...]:
            last = one["rungs"][-1] if one["rungs"] else {}
            value = last.get("value")
            return (one["result"] != "best", -len(one["rungs"]), value is None, -sign * (value or 0.0))

        return [self._row(one) for one in sorted(self.record["candidates"], key=place)]

    def _row(self, one: Mapping[str, Any]) -> list[str]:
        last, unit = (one["rungs"] or [{}])[-1], self.record.get("unit", "percent")
        value, interval = "-", "-"
        if "value" in last:
            factor, digits = scale(unit, last["value"])
            value = number(unit, last["value"])
            interval = f"{factor * last['low']:.{digits}f} to {factor * last['high']:.{digits}f}"
        values = [text_of(each) for each in one["values"].values()]
        return [str(one["number"]), *values, f"{last.get('step', 0):,}", value, interval, one["result"]]

    @property
    def verdict(self) -> str:
        """Which values are the best, and which tie with them, in a few sentences."""
        held = {one["number"]: one for one in self.record["candidates"]}
        best, tied = self.record["best"], self.record["tied_with_best"]
        ends = held[best["number"]]["rungs"][-1]
        metric = self.record["metric"]
        sentences = f"Best by {metric}: {short(best['values'])} ({number(self.record['unit'], ends['value'])})."
        if tied:
            named = " and ".join(f"{short(held[one]['values'])} (#{one})" for one in tied)
            sentences += f" It ties with {named}: the difference is within its 95 % interval over validation rows."
        close = sum(len(rung.get("dropped_in_a_tie", ())) for rung in self.record["rungs"])
        if close:
            plural = "candidates were" if close > 1 else "candidate was"
            sentences += f" {close} {plural} dropped in a tie with the last one that went on."
        return f"{sentences} Intervals are of validation rows; another seed may choose otherwise."

    @property
    def cost(self) -> str:
        """What the tuning took, and whether that was within its budget."""
        budget, seconds = Budget.parse(self.record["budget"]), self.record["seconds"]
        spent = f"{self.record['steps']:,} steps in {seconds:.0f} s of training"
        if budget.seconds is not None and seconds > budget.seconds:
            return f"{spent}, more than the budget of {budget}: the machine became slower after it was timed."
        return f"{spent}, within the budget of {budget}."

    def to_frame(self) -> pd.DataFrame:
        """Return a row per candidate and rung: number, values, rung, step, value, low, high, result."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"number": one["number"]}
                | one["values"]
                | {"rung": place}
                | {name: rung.get(name) for name in ("step", "value", "low", "high")}
                | {"result": one["result"]}
                for one in self.record["candidates"]
                for place, rung in enumerate(one["rungs"], 1)
            ]
        )

    @property
    def _flat(self) -> list[str]:
        return [heading.replace("\n", " ") for heading in self.headings]

    def __repr__(self) -> str:
        return text_table(self._title, self._flat, self.rows)

    def _repr_html_(self) -> str:
        return html_table(self._title, self._flat, self.rows)

    @property
    def _title(self) -> str:
        state = "tuned" if self.record["state"] == "finished" else "being tuned"
        kept = f", best run in {self.folder}" if self.record["state"] == "finished" else ""
        return f"{self.record['recipe']['name']}, {len(self.record['candidates'])} candidates, {state}{kept}"
