"""Reading of a run's small files, which may be damaged or edited by hand: its record, processor and history."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polymodal.data import processor as processors
from polymodal.data.processor import Processor
from polymodal.errors import UserError, nearest_path, read_errors
from polymodal.training.checksums import checksum_of_bytes, checksums_of_files

RECORD = "run.json"
ADVICE = "train the run again, or copy the file again from where it is whole"
REQUIRED: Mapping[str, type] = {"recipe": dict, "corpus": dict, "budget": str, "seed": int, "state": str}
COUNTS = ("steps", "examples", "tokens", "parameters", "skipped", "skipped_steps", "processes", "validations")
NUMBERS = (*COUNTS, "seconds")
OPTIONAL: Mapping[str, type] = {
    "init": str,
    "runtime": dict,
    "process": dict,
    "metrics": dict,
    "features": dict,
    "flops_by_stage": dict,
    "checksums": dict,
    "not_initialized": list,
    "command": str,
    "data_fingerprint": str,
    "stopped_by": str,
    **dict.fromkeys(NUMBERS, float),
}
STATES = ("running", "interrupted", "finished")


def read_record(directory: Path) -> dict[str, Any]:
    """Read the record of a run. Raises UserError when the folder is not a run, and for values of other types."""
    path = directory / RECORD
    if not path.is_file():
        near = nearest_path(directory)
        advice = f"did you mean {near}?" if near else "`polymodal runs` lists the runs there are."
        raise UserError(f"{directory} is not a run (it has no {RECORD}); {advice}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["recipe"]["class"], record["recipe"]["values"]
        wrong = _wrong_entry(record)
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged; {ADVICE}.") from error
    if wrong:
        raise UserError(f"{path} is damaged ({wrong}); {ADVICE}.")
    return record


def _wrong_entry(record: Mapping[str, Any]) -> str:
    """Return what is wrong with the entries of a record; '' if nothing is."""
    for name, kind in {**REQUIRED, **OPTIONAL}.items():
        if name not in record:
            if name in REQUIRED:
                return f"it lacks '{name}'"
            continue
        value = record[name]
        fits = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not fits or (isinstance(value, int | float) and not (math.isfinite(value) and 0 <= value < 2**63)):
            return f"'{name}' is {str(value)[:40]!r}"
    if record["state"] not in STATES:
        return f"'state' is {record['state'][:40]!r}"
    if not isinstance(record["recipe"].get("name"), str):
        return "'recipe.name' is no text"
    return ""


def save_processor(processor: Processor, directory: Path) -> dict[str, str]:
    """Save the processor, each file atomically; return the checksums of its files by name, for the record."""
    aside = directory / ".processor.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        processor.save(aside)
        checksums = checksums_of_files(aside)
        for path in aside.iterdir():
            if path.is_dir():
                shutil.rmtree(directory / path.name, ignore_errors=True)
            os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return checksums


def load_processor(record: Mapping[str, Any], recipe: Any, directory: Path) -> Processor:
    """Load the processor of a run. Raises UserError for a file that is missing, damaged or not what was saved."""
    for name, kept in record.get("checksums", {}).items():
        file = directory / name
        if not file.resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{directory / RECORD} names a file outside the run: {name!r}.")
        with read_errors(file, ADVICE):
            if checksum_of_bytes(file.read_bytes()) != kept:
                raise UserError(f"{file} was changed or damaged after it was written (its checksum differs); {ADVICE}.")
    with read_errors(directory / processors.SETTINGS, ADVICE):
        return Processor.load(directory, recipe.columns())


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the history of a run. Raises UserError for a file that is missing or damaged."""
    with read_errors(path, ADVICE):
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(entry, dict) and isinstance(entry.get("step"), int) for entry in history):
            raise ValueError("a line is no entry with a step")
        return history
