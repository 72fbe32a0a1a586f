"""Output as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from polymodal.errors import UserError
from polymodal.training.run import write_text


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file atomically. Raises UserError for an unwritable path."""
    text = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
