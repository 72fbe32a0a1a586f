"""Limits of requests, checks of them before anything is decoded, and the resulting errors."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from PIL import Image as PILImage
from starlette.concurrency import run_in_threadpool

from polymodal.constraints import PositiveFloat, PositiveInt
from polymodal.data.columns.column import reject_unknown_columns
from polymodal.errors import UnreadableExample, UserError, unusable
from polymodal.modalities import Audio, Image
from polymodal.modalities.image import to_rgb
from polymodal.serving.batching import DeadlineExceeded, QueueFull

MAX_FIELDS = 20  # per request
MAX_CHANNELS, MAX_SAMPLES, RATES = 8, 32_000_000, (1_000, 384_000)  # per sound; samples over all channels
HELD = 16  # maximum number of largest requests in memory at the same time
# Other formats start external programs, or contain images of another size than in their header.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")


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


class HTTPError(Exception):
    """Error response, with HTTP status, and code and message of the error."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, self.headers)


CLIENT_ERRORS = (
    HTTPError,
    UserError,
    UnreadableExample,
    QueueFull,
    DeadlineExceeded,
)  # errors that clients can cause, and timeouts


def error_response(error: Exception) -> HTTPError:
    """Return the response to one of `CLIENT_ERRORS`."""
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, QueueFull):
        return HTTPError(429, "busy", "Too many requests wait; try again in a second.", {"Retry-After": "1"})
    if isinstance(error, DeadlineExceeded):
        return HTTPError(504, "too_late", "The answer was not there before the deadline.")
    if isinstance(error, UnreadableExample):
        return HTTPError(400, "unreadable", str(unusable(error)))
    return HTTPError(400, "invalid_request", str(error))


def usable_key(key: str | None) -> str | None:
    """Check the API key. Raises UserError for an empty key, such as that of an unset variable."""
    if key is not None and not key.strip():
        raise UserError("The API key is empty; give one with --api-key or POLYMODAL_API_KEY, or neither.")
    return key


class Held:
    """Bounds the total amount held by all requests; later ones wait in order (fair semaphore)."""

    def __init__(self, size: int):
        self.size = self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, amount: int, seconds: float) -> AsyncIterator[None]:
        """Acquire the amount within `seconds`. Raises DeadlineExceeded."""
        amount = min(amount, self.size)
        if self._waiting or amount > self.free:
            await self._wait(amount, seconds)
        else:
            self.free -= amount
        try:
            yield
        finally:
            self._release(amount)

    async def _wait(self, amount: int, seconds: float) -> None:
        entry = (amount, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(entry[1], seconds)
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._release(0)
            else:  # granted at the same time
                self._release(amount)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded from error
            raise

    def _release(self, amount: int) -> None:
        self.free += amount
        while self._waiting and self._waiting[0][0] <= self.free:
            granted, future = self._waiting.popleft()
            self.free -= granted
            if future.done():  # it has left, and gives back itself what it was granted
                continue
            future.set_result(None)


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
    """Return a text per label. Their total length is checked before they are built."""
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
    return [template.replace("{}", label) for label in labels]


def bounded_route(limits: Limits) -> type[APIRoute]:
    """Return a route class that parses and checks the body in a thread, before pydantic builds an error for each
    value."""

    class _Request(Request):
        parsed: Any = None

        async def json(self) -> Any:
            return self.parsed

    class _Route(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                checked = _Request(request.scope, request.receive)
                body = await checked.body()
                if body and "json" in checked.headers.get("content-type", "json").lower():
                    checked.parsed = await run_in_threadpool(parsed, body, limits)
                return await handle(checked)

            return bounded

    return _Route


class Decoder:
    """Decodes images and sounds of requests, after checking and summing the sizes in their headers."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.images, self.sounds = Image(), Audio(longest=limits.seconds)
        self.held = Held(limits.request_pixels)

    @asynccontextmanager
    async def decoded(
        self,
        columns: Mapping[str, list[Any]],
        ends: float,
        texts: int | None = None,
        takes: Sequence[str] | None = None,
    ) -> AsyncIterator[dict[str, list[Any]]]:
        """Decode images and sounds (encoded bytes or base64); texts are unchanged. Their memory counts inside the
        block.

        ends: deadline by `time.monotonic`. texts: maximum number of texts, instead of `Limits.items`. takes: accepted
        columns; others are rejected. Raises HTTPError, UserError, UnreadableExample, and DeadlineExceeded when other
        requests hold too much memory until the deadline.
        """
        opened, size = await run_in_threadpool(self._opened, columns, texts or self.limits.items)
        if takes is not None:
            reject_unknown_columns(columns, takes)
        async with self.held.hold(size, ends - time.monotonic()):
            yield await run_in_threadpool(self._loaded, opened)

    def _opened(self, columns: Mapping[str, list[Any]], texts: int) -> tuple[dict[str, list[Any]], int]:
        """Open images by their headers and sounds as files; also returns the approximate number of decoded values."""
        opened, size = dict(columns), 0
        for column, values in columns.items():
            if column == "text":
                check_texts(values, self.limits, texts)
                continue
            check_count(values, self.limits.items)
            if column == "image":
                opened[column], pixels = self._opened_images(values)
                size += pixels
            else:
                opened[column], samples = self._opened_sounds(values)
                size += samples
        return opened, size

    def _opened_images(self, values: Sequence[str | bytes]) -> tuple[list[PILImage.Image], int]:
        opened, total = [], 0
        for value in values:
            image = self.images.decode(_bytes(value))
            if image.format not in IMAGE_FORMATS:
                raise UnreadableExample(f"an image is in none of the formats {', '.join(IMAGE_FORMATS)}")
            pixels = image.width * image.height
            if pixels > self.limits.pixels:
                raise HTTPError(413, "too_large", f"An image has at most {self.limits.pixels:,} pixels.")
            total += pixels
            if total > self.limits.request_pixels:
                said = f"The images of a request have at most {self.limits.request_pixels:,} pixels together."
                raise HTTPError(413, "too_large", said)
            opened.append(image)
        return opened, total

    def _opened_sounds(self, values: Sequence[str | bytes]) -> tuple[list[bytes], int]:
        opened, seconds, largest = [], 0.0, 0
        for value in values:
            file = _bytes(value)
            duration, samples = self._check_sound(file)
            seconds, largest = seconds + duration, max(largest, samples)
            if seconds > self.limits.request_seconds:
                said = f"The sounds of a request have at most {self.limits.request_seconds:g} seconds together."
                raise HTTPError(413, "too_long", said)
            opened.append(file)
        return opened, round(seconds * self.sounds.rate) + largest

    def _check_sound(self, file: bytes) -> tuple[float, int]:
        """Return seconds and samples of a sound by its header."""
        import soundfile

        try:
            about = soundfile.info(io.BytesIO(file))
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise UnreadableExample(f"the sound cannot be decoded: {error}") from error
        if not RATES[0] <= about.samplerate <= RATES[1]:
            raise UnreadableExample(f"a sound has from {RATES[0]:,} to {RATES[1]:,} samples a second")
        if not 1 <= about.channels <= MAX_CHANNELS:
            raise UnreadableExample(f"a sound has at most {MAX_CHANNELS} channels")
        if about.duration > self.limits.seconds:
            raise HTTPError(413, "too_long", f"A sound has at most {self.limits.seconds:g} seconds.")
        samples = about.frames * about.channels
        if samples > MAX_SAMPLES:
            raise HTTPError(413, "too_long", f"A sound has at most {MAX_SAMPLES:,} samples.")
        return about.duration, samples

    def _loaded(self, opened: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Decode one by one, so that at most one intermediate form is in memory."""
        decode: dict[str, Callable[[Any], Any]] = {"text": str, "image": self._image, "sound": self._sound}
        return {column: [decode[column](value) for value in values] for column, values in opened.items()}

    def _image(self, image: PILImage.Image) -> PILImage.Image:
        try:
            return to_rgb(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadableExample("the image is damaged") from error

    def _sound(self, file: bytes) -> np.ndarray:
        return self.sounds.decode(file)


class Bodies:
    """Receives request bodies, and bounds their bytes, each and in total."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.bytes = 0

    async def receive(self, length: bytes, receive: Callable[[], Any], largest: int) -> bytes:
        """Receive a body; `release` must follow. Raises HTTPError.

        length: the Content-Length header. largest: maximum bytes. Too large bodies are never kept in memory.
        """
        too_large = HTTPError(413, "too_large", f"A request has at most {largest:,} bytes.", {"Connection": "close"})
        if length.isdigit() and int(length[:20]) > largest:
            raise too_large
        body, more, ends = bytearray(), True, time.monotonic() + self.limits.deadline
        try:
            while more:
                try:
                    message = await asyncio.wait_for(receive(), ends - time.monotonic())
                except TimeoutError as error:
                    said = "The request did not come in time."
                    raise HTTPError(408, "too_slow", said, {"Connection": "close"}) from error
                if message["type"] == "http.disconnect":
                    raise HTTPError(408, "too_slow", "The client has left.")
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > largest:
                    raise too_large
                if self.bytes + len(chunk) > HELD * self.limits.body_bytes:
                    raise QueueFull
                self.bytes += len(chunk)
                body += chunk
                more = message.get("more_body", False)
        except BaseException:
            self.release(body)
            raise
        return bytes(body)

    def release(self, body: bytes | bytearray) -> None:
        self.bytes -= len(body)


def _bytes(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPError(400, "invalid_request", "An image or sound is not base64.") from error
