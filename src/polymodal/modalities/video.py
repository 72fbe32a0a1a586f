"""Video: uint8 frames, time x height x width x 3, evenly sampled over the seconds of the clip.

Frames are turned and mirrored as the display matrix of the file says, which phones write. Where the size of frames
changes within a clip, all are scaled to that of the first, as FFmpeg does. Where the frame rate varies, frames are
sampled by their time. Clips that end before their container says so are rejected (`cut_off`).
"""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from polymodal.errors import UnreadableExample, check_resources, needs
from polymodal.files import open_regular
from polymodal.modalities.cut_off import cut_off_video
from polymodal.modalities.modality import bytes_or_path

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
MAX_FRAMES = 20_000  # maximum number of frames decoded per clip
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
    """Column of clips (MP4, WebM, Matroska ...): encoded bytes, paths, or `{"bytes", "path"}` records of `datasets`.

    frames: maximum number of frames of a decoded clip. root: folder of relative paths.
    """

    frames: int = 16
    root: Path | None = None

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes | str | Mapping[str, Any]) -> Clip:
        """Decode frames at the centers of equal time segments. Raises UnreadableExample when none can be decoded."""
        stored: Any = bytes_or_path(value)
        try:
            import av
        except ImportError as error:
            raise needs("av", "video", "Reading video") from error
        try:
            source = str((self.root or Path()) / stored) if isinstance(stored, str) else io.BytesIO(stored)
            _check_whole(source)
            with av.open(source, "r", options=OPENING) as container:
                if not container.streams.video:
                    raise UnreadableExample("the file has no video stream")
                frames = list(_shown(container, self.frames))
        except UnreadableExample:
            raise
        except (av.FFmpegError, OSError, TypeError, ValueError) as error:
            check_resources(error)
            reason = getattr(error, "strerror", None) or str(error)
            named = f"video {(self.root or Path()) / stored}" if isinstance(stored, str) else "video"
            raise UnreadableExample(f"the {named} cannot be decoded: {reason}") from error
        if not frames:
            raise UnreadableExample("the video holds no frames")
        return Clip(np.stack([pixels for pixels, _ in frames]), tuple(second for _, second in frames))

    def describe(self, value: Clip) -> str:
        time, height, width, _ = value.frames.shape
        return f"{time} frames of {width} x {height} px over {value.seconds[-1]:.1f} s"

    def plot(self, value: Clip, axes: Any) -> None:
        """Plot six frames in reading order."""
        chosen = value.frames[sample_evenly(len(value.frames), 6)]
        lines = [np.concatenate(list(chosen[start : start + 3]), axis=1) for start in range(0, len(chosen) - 2, 3)]
        axes.imshow(np.concatenate(lines or [chosen[0]], axis=0))
        axes.axis("off")


def _check_whole(source: str | io.BytesIO) -> None:
    """Raise UnreadableExample for a clip that ends before its header says so."""
    with open_regular(source) if isinstance(source, str) else nullcontext(source) as file:
        how = cut_off_video(file)
        file.seek(0)
    if how:
        raise UnreadableExample(f"the video is cut off: {how}")


def _shown(container: Any, wanted: int) -> Iterator[tuple[UInt8[np.ndarray, "height width 3"], float]]:
    """Yield the pixels, as they are shown, and the second of evenly sampled frames."""
    from av.video.reformatter import VideoReformatter

    stream = container.streams.video[0]
    _check_size(stream.codec_context.width, stream.codec_context.height)
    times = _times(container, stream)
    container.seek(0)
    stream.codec_context.options = {"max_pixels": str(FRAME_PIXELS)}
    stream.thread_type = "NONE"  # examples are decoded in threads already
    chosen = sample_times(*times, wanted) if times else None
    if chosen is None:  # a container without times
        count = stream.frames or sum(1 for _ in itertools.islice(container.decode(stream), MAX_FRAMES))
        container.seek(0)
        chosen = sample_evenly(min(count, MAX_FRAMES), wanted)
    first = None
    # One for all frames: each frame's own would set up the conversion anew, the larger part of the time.
    to_rgb = VideoReformatter()
    for index, frame in enumerate(itertools.islice(container.decode(stream), MAX_FRAMES)):
        if not chosen:
            return
        if (frame.pts if times else index) < chosen[0]:
            continue
        _check_size(frame.width, frame.height)
        first = first or frame
        pixels = to_rgb.reformat(frame, first.width, first.height, "rgb24").to_ndarray()
        shown = np.ascontiguousarray(_displayed(pixels, _display_matrix(first)))
        while chosen and (frame.pts if times else index) >= chosen[0]:  # several times where it is shown for long
            yield shown, float(frame.time or 0)
            chosen = chosen[1:]


def _times(container: Any, stream: Any) -> tuple[list[int], int] | None:
    """Return the sorted times of all frames, and the end of the last, in units of the stream; None where the container
    has no times. Nothing is decoded."""
    packets = [packet for packet in itertools.islice(container.demux(stream), MAX_FRAMES) if packet.size]
    times = sorted({packet.pts for packet in packets if packet.pts is not None})
    if len(times) < len(packets) or not times:
        return None
    last = next(packet for packet in packets if packet.pts == times[-1])
    mean = (times[-1] - times[0]) // (len(times) - 1) if len(times) > 1 else 1
    return times, times[-1] + (last.duration or mean)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return (a, b, c, d) of a frame's display matrix: a pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    data = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return a, b, c, d


def _displayed(
    pixels: UInt8[np.ndarray, "height width 3"], matrix: tuple[int, int, int, int]
) -> UInt8[np.ndarray, "shown_height shown_width 3"]:
    """Turn and mirror by a display matrix; angles are rounded to quarter turns."""
    a, b, c, d = matrix
    across, down = a, d
    if abs(b) > abs(a):  # rows become columns
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _check_size(width: int, height: int) -> None:
    """Raise UnreadableExample for frames that are too large to decode."""
    if width * height > FRAME_PIXELS:
        raise UnreadableExample(f"the video has {width} x {height} pixels, over the limit of {FRAME_PIXELS:,} pixels")


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Return the indices of frames at the centers of `wanted` equal segments; all when there are fewer frames."""
    if count <= wanted:
        return list(range(count))
    return [int((2 * segment + 1) * count / (2 * wanted)) for segment in range(wanted)]


def sample_times(times: list[int], end: int, wanted: int) -> list[int]:
    """Return the times of the frames that are shown at the centers of `wanted` equal time segments; all when there are
    fewer frames.

    times: in ascending order. end: when the last frame ends.
    """
    if len(times) <= wanted:
        return times
    span = end - times[0]
    centers = [times[0] + (2 * segment + 1) * span // (2 * wanted) for segment in range(wanted)]
    return [times[bisect.bisect_right(times, center) - 1] for center in centers]


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
