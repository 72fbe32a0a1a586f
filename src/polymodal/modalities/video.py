"""Video: uint8 frames, time x height x width x 3, evenly sampled over the clip."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from polymodal.errors import UnreadableExample, needs

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
MAX_PIXELS = 20_000  # maximum number of frames decoded per clip
FRAME_PIXELS = 8192 * 4320  # maximum per frame
# Accepted container formats, by FFmpeg's names; playlists are unsafe, as they refer to other files and URLs.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf"
OPENING = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


class Clip(NamedTuple):
    """Decoded clip. frames: RGB, 0-255. seconds: time of each frame from the start."""

    frames: UInt8[np.ndarray, "time height width 3"]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Video:
    """Column of clips (MP4, WebM, Matroska ...): encoded bytes or paths.

    frames: maximum number of frames of a decoded clip. root: folder of relative paths.
    """

    frames: int = 16
    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes | str) -> Clip:
        """Decode frames at the centers of equal time segments. Raises UnreadableExample when none can be decoded."""
        try:
            import av
        except ImportError as error:
            raise needs("av", "video", "Reading video") from error
        try:
            source = str((self.root or Path()) / value) if isinstance(value, str) else io.BytesIO(value)
            with av.open(
                source, "r", options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
            ) as container:
                stream = container.streams.video[0]
                _check_size(stream.codec_context.width, stream.codec_context.height)
                stream.codec_context.options = {"max_pixels": str(FRAME_PIXELS)}
                stream.thread_type = "NONE"  # examples are decoded in threads already
                count = stream.frames or sum(1 for _ in itertools.islice(container.decode(stream), MAX_PIXELS))
                if not stream.frames:
                    container.seek(0)
                count = min(count, MAX_PIXELS)
                wanted = set(sample_evenly(count, self.frames))
                frames, seconds = [], []
                # One for all frames: each frame's own would set up the conversion anew, the larger part of the time.
                to_rgb = av.video.reformatter.VideoReformatter()
                for index, frame in enumerate(container.decode(stream)):
                    if index in wanted:
                        _check_size(frame.width, frame.height)
                        frames.append(to_rgb.reformat(frame, format="rgb24").to_ndarray())
                        seconds.append(float(frame.time or 0))
                    if index >= max(wanted, default=0):
                        break
        except UnreadableExample:
            raise
        except (av.FFmpegError, OSError, IndexError, TypeError, ValueError) as error:
            raise UnreadableExample(f"the video cannot be decoded: {error}") from error
        if not frames:
            raise UnreadableExample("the video holds no frames")
        return Clip(np.stack(frames), tuple(seconds))

    def describe(self, value: Clip) -> str:
        time, height, width, _ = value.frames.shape
        return f"{time} frames of {width} x {height} px over {value.seconds[-1]:.1f} s"

    def plot(self, value: Clip, axes: Any) -> None:
        """Plot six frames in reading order."""
        chosen = value.frames[sample_evenly(len(value.frames), 6)]
        lines = [np.concatenate(list(chosen[start : start + 3]), axis=1) for start in range(0, len(chosen) - 2, 3)]
        axes.imshow(np.concatenate(lines or [chosen[0]], axis=0))
        axes.axis("off")


def _check_size(width: int, height: int) -> None:
    """Raise UnreadableExample for frames that are too large to decode."""
    if width * height > FRAME_PIXELS:
        raise UnreadableExample(f"the video has {width} x {height} pixels, over the limit of {FRAME_PIXELS:,} pixels")


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Return the indices of frames at the centers of `wanted` equal segments; all when there are fewer frames."""
    if count <= wanted:
        return list(range(count))
    return [int((2 * segment + 1) * count / (2 * wanted)) for segment in range(wanted)]


def encode(frames: UInt8[np.ndarray, "time height width 3"], rate: int) -> bytes:
    """Encode frames to an MP4 file in memory (H.264 if available, else MPEG-4). rate: frames per second."""
    try:
        import av
    except ImportError as error:
        raise needs("av", "video", "Writing video") from error
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
