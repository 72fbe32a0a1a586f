"""Scores of a user's own captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polymodal.errors import UserError
from polymodal.evaluation.caption_metric import CaptionScore, Metric
from polymodal.serving.json_lines import write_json_lines


def score_captions(metric: Metric, captions: Path, out: Path) -> list[tuple[str, CaptionScore]]:
    """Score the captions of a JSON lines file; write each line with its score and those of its objects.

    A line has `caption`, `references` (other captions of the image) and, optionally, `detections` (object names of a
    detector). Raises UserError for an invalid file, and for an unwritable path.
    """
    try:
        lines = [line for line in captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{captions} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    records = [_record(line, f"line {number} of {captions}") for number, line in enumerate(lines, start=1)]
    if not records:
        raise UserError(f"{captions} is empty; it needs lines of JSON with caption and references.")
    scored = [
        (record["caption"], metric.score(record["caption"], record["references"], record.get("detections", [])))
        for record in records
    ]
    write_json_lines(
        out,
        [
            record | {"score": one.value, "objects": dict(one.objects)}
            for record, (_, one) in zip(records, scored, strict=True)
        ],
    )
    return scored


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}.") from error
    kinds = {"caption": str, "references": list, "detections": list}
    for name, kind in kinds.items():
        value = record.get(name, [] if name == "detections" else None) if isinstance(record, dict) else None
        texts = value if isinstance(value, list) else [value]
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            what = "a text" if kind is str else "a list of texts"
            raise UserError(
                f'{place} lacks {what} called "{name}"; it has to be like {{"caption": "a cat", "references": []}}.'
            )
    return record
