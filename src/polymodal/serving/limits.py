"""Limits of requests, and checks of their JSON before anything is decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polymodal.constraints import PositiveFloat, PositiveInt
from polymodal.serving.http_errors import HTTPError

MAX_FIELDS = 20  # per request


@dataclass(frozen=True)
class Limits:
    """Limits of a request in size and time."""

    body_bytes: PositiveInt = 32 * 2**20
    """Maximum bytes per request."""
    pixels: PositiveInt = 50_000_000
    """Maximum pixels per image."""
    request_pixels: PositiveInt = 100_000_000
    """Maximum pixels of all images of a request."""
    seconds: PositiveFloat = 60.0
    """Maximum seconds per sound."""
    request_seconds: PositiveFloat = 600.0
    """Maximum seconds of all sounds of a request."""
    characters: PositiveInt = 10_000
    """Maximum characters of a text, a question or a template."""
    request_characters: PositiveInt = 640_000
    """Maximum characters of all texts of a request, including the template with each label."""
    items: PositiveInt = 64
    """Maximum number of texts, images or sounds per request."""
    labels: PositiveInt = 256
    """Maximum number of labels per request."""
    deadline: PositiveFloat = 30.0
    """Timeout in seconds, after which a request is answered with 504."""
    head_deadline: PositiveFloat = 10.0
    """Timeout in seconds for the request line and headers, after which the connection is closed."""
    connections: PositiveInt = 1000
    """Maximum number of open connections; more are answered with 503."""


def parsed(body: bytes, limits: Limits) -> Any:
    """Parse the JSON of a request, with bounded list and text lengths. Raises HTTPError.

    The number of values is bounded before parsing: a byte of JSON can take a hundred bytes of memory.
    """
    parts = sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if parts > limits.request_characters + 4 * limits.items + limits.labels + 100:
        raise HTTPError(413, "too_many", "The request has too many values.")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is damaged or nested too deeply"
        raise HTTPError(400, "invalid_request", f"The request is not JSON: {reason}.") from error
    if isinstance(asked, dict):
        if len(asked) > MAX_FIELDS:
            raise HTTPError(400, "invalid_request", f"A request has at most {MAX_FIELDS} fields.")
        for name, value in asked.items():
            _check_field(ascii(name[:100])[1:-1], value, limits)
    elif isinstance(asked, list):
        raise HTTPError(400, "invalid_request", "The request is not a JSON object.")
    return asked


def _check_field(name: str, value: Any, limits: Limits) -> None:
    if isinstance(value, list):
        check_count(value, limits.labels if name == "labels" else limits.items)
        for place, one in enumerate(value):
            if not isinstance(one, str):
                raise HTTPError(400, "invalid_request", f"{name}.{place}: Input should be a valid string.")
    elif isinstance(value, dict):
        raise HTTPError(400, "invalid_request", f"{name}: Input should be no object.")
    if name not in ("image", "sound"):
        check_lengths([one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)], limits)


def check_count(values: Sequence[Any], largest: int) -> None:
    if len(values) > largest:
        raise HTTPError(413, "too_many", f"A request has at most {largest} values of a kind.")


def check_lengths(texts: Sequence[str], limits: Limits) -> None:
    if any(len(text) > limits.characters for text in texts):
        raise HTTPError(413, "too_long", f"A text has at most {limits.characters:,} characters.")
    if sum(map(len, texts)) > limits.request_characters:
        raise HTTPError(
            413, "too_long", f"The texts of a request have at most {limits.request_characters:,} characters."
        )


def check_characters(text: str, place: str = "") -> None:
    """Raise HTTPError for a lone surrogate, which JSON can escape and UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HTTPError(400, "invalid_request", f"{place}Half of a surrogate pair is no character.") from error


def check_texts(texts: Sequence[str], limits: Limits, largest: int) -> None:
    check_count(texts, largest)
    check_lengths(texts, limits)
    if not all(text.strip() for text in texts):
        raise HTTPError(400, "empty", "A text is empty.")
    for text in texts:
        check_characters(text)


def label_texts(labels: Sequence[str], template: str, limits: Limits) -> list[str]:
    """Return a text per label. Their total length is checked before they are built.

    Raises HTTPError also for a label that is there twice, as each would get a part of its probability.
    """
    check_count(labels, limits.labels)
    check_lengths([template], limits)
    places = template.count("{}")
    if not places:
        raise HTTPError(400, "invalid_request", "The template has a place for the label: {}.")
    lengths = [len(template) + places * (len(label) - 2) for label in labels]
    if max(lengths, default=0) > limits.characters:
        raise HTTPError(413, "too_long", f"A label in its template has at most {limits.characters:,} characters.")
    if sum(lengths) > limits.request_characters:
        said = f"The labels in their template have at most {limits.request_characters:,} characters together."
        raise HTTPError(413, "too_long", said)
    twice = next((label for label, count in Counter(labels).items() if count > 1), None)
    if twice is not None:
        shown = twice if len(twice) <= 60 else f"{twice[:57]}..."
        raise HTTPError(400, "invalid_request", f"The label '{shown}' is there more than once; give each once.")
    return [template.replace("{}", label) for label in labels]
