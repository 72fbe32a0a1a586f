"""The scores of a run as one table: text, HTML, DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polymodal.evaluation.statistics import Score, headlines
from polymodal.notebook import html_table, text_table

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = ("score", "value", "95 % interval", "chance")


class Scores(list[Score]):
    """A list of scores that shows itself as a table: the headline scores first, then the others."""

    def to_frame(self) -> pd.DataFrame:
        """Return a row per score: split, task, metric, value, low, high, chance, unit, higher_is_better."""
        import pandas as pd

        rows = []
        for score in self:
            split, _, rest = score.name.partition("/")
            task, _, metric = rest.rpartition("/")
            kind = (score.chance, score.unit, score.higher_is_better)
            rows.append((split, task, metric, *score.estimate(), *kind))
        names = ("split", "task", "metric", "value", "low", "high", "chance", "unit", "higher_is_better")
        return pd.DataFrame(rows, columns=list(names))

    def __repr__(self) -> str:
        return text_table(self._title, HEADINGS, self._rows()) if self else "no scores"

    def _repr_html_(self) -> str:
        return html_table(self._title, HEADINGS, self._rows())

    @property
    def _title(self) -> str:
        return f"{len(self)} scores" if len(self) != 1 else "1 score"

    def _rows(self) -> list[tuple[str, ...]]:
        first = headlines(self)
        shown = {id(score) for score in first}
        return [(score.name, *score.shown()) for score in [*first, *(one for one in self if id(one) not in shown)]]
