"""The runs below a folder, from their records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polymodal.errors import UserError
from polymodal.training.run import RECORD, read_record


def find_runs(root: Path) -> list[dict[str, Any]]:
    """One row a run, by path. Raises UserError when the folder does not exist."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    rows = []
    for path in sorted(root.rglob(RECORD)):
        try:
            record = read_record(path.parent)
            rows.append(
                {
                    "run": str(path.parent),
                    "recipe": record["recipe"]["name"],
                    "corpus": record["corpus"].get("corpus") or record["corpus"].get("data", ""),
                    "budget": record["budget"],
                    "seed": record["seed"],
                    "state": record["state"],
                    "steps": record.get("steps", ""),
                    "seconds": record.get("seconds", ""),
                    "parameters": record["parameters"],
                }
            )
        except (UserError, KeyError, TypeError):
            continue  # some other program's run.json
    return rows
