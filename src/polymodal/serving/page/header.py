"""Header of the page: name, recipe, corpus, and headline metric of each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from polymodal.evaluation.kept_scores import scores_kept_in
from polymodal.evaluation.statistics import Score, headlines
from polymodal.reproduce.compare import SCORES
from polymodal.serving.service import Service
from polymodal.training.run import Run


def header(services: Sequence[Service]) -> str:
    """Return the HTML of the header."""
    return f'<div class="runs">{"".join(_run(service.run) for service in services)}</div>'


def _run(run: Run) -> str:
    record = run.record
    facts = [
        record["recipe"]["name"],
        _data(record.get("corpus", {})),
        f"{record['budget']}, seed {record['seed']}",
    ]
    lines = "".join(f"<small>{escape(line)}</small>" for line in [", ".join(filter(None, facts)), headline(run)])
    return f"<div><h1>{escape(run.name)}</h1>{lines}</div>"


def _data(corpus: dict[str, Any]) -> str:
    """Return the corpus or the names of the files, without their folders."""
    data = corpus.get("corpus") or corpus.get("data") or ""
    return ", ".join(Path(str(one)).name for one in (data if isinstance(data, list | tuple) else [data]) if one)


def headline(run: Run) -> str:
    """Return the headline metric with its chance level: of the scores in the run's folder, else of validation."""
    scores = _scores(run)
    if scores:
        value, interval, chance = scores[0].shown()
        return f"{scores[0].name} {value} (95 % interval {interval}, chance {chance})"
    validated = [entry["validation"] for entry in run.history if entry.get("validation")]
    if not validated:
        return "not evaluated"
    name, value = next(iter(validated[-1].items()))
    return f"{name} {value:.3f} on the validation split, not evaluated on a test split"


def _scores(run: Run) -> list[Score]:
    """Return the headline scores that `evaluate` kept, else those of a comparison."""
    if run.directory is None:
        return []
    if evaluated := headlines(scores_kept_in(run.directory)):
        return evaluated
    path = run.directory / SCORES
    try:
        return headlines(Score.from_json(record) for record in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return []
