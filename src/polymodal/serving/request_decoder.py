"""Images and sounds of requests: checked by their headers, then decoded in bounded memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image as PILImage
from starlette.concurrency import run_in_threadpool

from polymodal.data.columns.column import reject_unknown_columns
from polymodal.errors import UnreadableExample
from polymodal.modalities import Audio
from polymodal.modalities.audio import undecodable
from polymodal.modalities.image import open_header, to_rgb
from polymodal.serving.batching import DeadlineExceeded
from polymodal.serving.http_errors import HTTPError
from polymodal.serving.limits import Limits, check_count, check_texts

MAX_CHANNELS, MAX_SAMPLES, RATES = 8, 32_000_000, (1_000, 384_000)  # per sound; samples over all channels
# Other formats start external programs, or contain images of another size than in their header.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")


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


class RequestDecoder:
    """Decodes images and sounds of requests, after checking and summing the sizes in their headers."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.sounds = Audio(longest=limits.seconds)
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
            image = open_header(_bytes(value))  # `to_rgb` turns it upright, when its memory is granted
            if image.format not in IMAGE_FORMATS:
                raise UnreadableExample(f"an image is in none of the formats {', '.join(IMAGE_FORMATS)}")
            pixels = image.width * image.height
            if pixels > self.limits.pixels:
                raise HTTPError(413, "too_large", f"An image has at most {self.limits.pixels:,} pixels.")
            total += pixels
            if total > self.limits.request_pixels:
                message = f"The images of a request have at most {self.limits.request_pixels:,} pixels together."
                raise HTTPError(413, "too_large", message)
            opened.append(image)
        return opened, total

    def _opened_sounds(self, values: Sequence[str | bytes]) -> tuple[list[bytes], int]:
        opened, seconds, largest = [], 0.0, 0
        for value in values:
            file = _bytes(value)
            duration, samples = self._check_sound(file)
            seconds, largest = seconds + duration, max(largest, samples)
            if seconds > self.limits.request_seconds:
                message = f"The sounds of a request have at most {self.limits.request_seconds:g} seconds together."
                raise HTTPError(413, "too_long", message)
            opened.append(file)
        return opened, round(seconds * self.sounds.rate) + largest

    def _check_sound(self, file: bytes) -> tuple[float, int]:
        """Return seconds and samples of a sound by its header."""
        import soundfile

        try:
            about = soundfile.info(io.BytesIO(file))
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise undecodable(error) from error
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
        return to_rgb(image)

    def _sound(self, file: bytes) -> np.ndarray:
        return self.sounds.decode(file)


def _bytes(value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPError(400, "invalid_request", "An image or sound is not base64.") from error
