"""The scores that `polymodal evaluate` keeps in the folder of a run, by split, task and metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from polymodal.evaluation.statistics import Score
from polymodal.training.run import write_text

EVALUATED = "evaluated.json"


def keep_scores(folder: Path, scores: Sequence[Score]) -> None:
    """Keep scores in place of those of the same split, task and metric; others stay.

    A folder that cannot be written keeps what it had, and a damaged file is replaced.
    """
    records = {score.name: score for score in [*scores_kept_in(folder), *scores]}
    with suppress(OSError):
        write_text(folder / EVALUATED, json.dumps([score.to_json() for score in records.values()]))


def scores_kept_in(folder: Path) -> list[Score]:
    """Return the scores that a folder keeps; none where there is no such file, or a damaged one."""
    try:
        records = json.loads((folder / EVALUATED).read_text(encoding="utf-8"))
        return [Score.from_json(record) for record in records]
    except (OSError, ValueError, KeyError, TypeError):
        return []
