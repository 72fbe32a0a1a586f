"""The configuration of a run, by which a folder is found to hold the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError
from polymodal.training.recipe_record import recipe_record
from polymodal.training.run import WEIGHTS, read_record
from polymodal.training.validation import VALIDATIONS
from polymodal.types import Budget

DEFAULTS = {"validations": VALIDATIONS}  # of records that do not state them


def new_record(
    recipe: Any, name: str | None, corpus: Corpus, budget: Budget, seed: int, init: Path | str | None
) -> dict[str, Any]:
    """Return the configuration by which a folder is found to hold this run."""
    record = {
        "recipe": recipe_record(recipe, name),
        "corpus": dict(corpus.choices),
        "budget": str(budget),
        "seed": seed,
    }
    return record if init is None else record | {"init": str(init)}


def holds_finished(directory: Path, record: dict[str, Any]) -> bool:
    """Return whether the folder holds this run, finished. Raises UserError when it holds another one."""
    if not directory.exists() or all(path.name.startswith(".") for path in directory.iterdir()):
        return False
    held = read_record(directory)
    same = json.loads(json.dumps(record))
    names = dict.fromkeys([*same, "early_stop", "keep"])
    if differing := ", ".join(name for name in names if held.get(name, DEFAULTS.get(name)) != same.get(name)):
        raise UserError(f"{directory} holds a run with another {differing}; choose another --out, or remove it.")
    return held["state"] == "finished" and (directory / WEIGHTS).is_file()
