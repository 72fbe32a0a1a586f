"""How fast values are decoded, on one core, against the plain call of the library that does it.

    python benchmarks/decode.py

The two alternate over the same values of the built-in corpora; the ratio is the median over the rounds. What polymodal
adds is checks (limits, damaged files, mono, the wanted rate), so at most 1.0 is to be expected.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import soundfile
import torch
from PIL import Image as PILImage

import polymodal as pm
from polymodal.modalities import Audio, Image, Points, Series, Video
from polymodal.modalities.image import to_rgb

VALUES, ROUNDS = 200, 9


def plain_image(data: bytes) -> Any:
    return PILImage.open(io.BytesIO(data)).convert("RGB")


def plain_transparent(data: bytes) -> Any:
    image = PILImage.open(io.BytesIO(data)).convert("RGBA")
    return PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image).convert("RGB")


def plain_sound(data: bytes) -> Any:
    samples, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return samples.mean(axis=1)


def plain_video(data: bytes) -> Any:
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_type = "NONE"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def plain_array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)


def seconds(decode: Callable[[Any], Any], values: list[Any]) -> float:
    start = time.perf_counter()
    for value in values:
        decode(value)
    return time.perf_counter() - start


def values_of(corpus: pm.corpora.Corpus, column: str) -> list[Any]:
    rows = np.flatnonzero(corpus.has(column))
    return corpus.raw_values(np.random.default_rng(0).permutation(rows)[:VALUES], column)


def main() -> None:
    torch.set_num_threads(1)
    speech = pm.corpora.speech()
    cases = [
        ("photograph, PNG 300 px", pm.corpora.solar_cells(), "image", lambda v: to_rgb(Image().decode(v)), plain_image),
        (
            "emoji, PNG 64 px, on white",
            pm.corpora.emoji(),
            "image",
            lambda v: to_rgb(Image().decode(v)),
            plain_transparent,
        ),
        ("speech, Ogg 16 kHz", speech, "sound", Audio().decode, plain_sound),
        ("clip, H.264 96 px, 16 frames", pm.corpora.clips(), "video", Video(16).decode, plain_video),
        ("point cloud, 4,096 x 6", pm.corpora.furniture(), "points", Points().decode, plain_array),
        ("time series", pm.corpora.series(), "series", Series().decode, plain_array),
    ]
    print(f"{'value':32}{'a second':>12}{'plain':>12}{'ratio':>8}")
    for name, corpus, column, ours, plain in cases:
        values = values_of(corpus, column)
        times = [(seconds(ours, values), seconds(plain, values)) for _ in range(ROUNDS)]
        own, other = (statistics.median(column_times) for column_times in zip(*times, strict=True))
        ratio = statistics.median(other / own for own, other in times)
        print(f"{name:32}{len(values) / own:12,.0f}{len(values) / other:12,.0f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
