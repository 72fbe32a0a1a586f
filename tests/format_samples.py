"""A small sample of each format of users' data: `SAMPLES[name](folder)` writes it, and returns the path to open."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from polymodal.modalities.image import encoded

COUNT = 12  # examples of a sample


def png(number: int) -> bytes:
    return encoded(PILImage.new("RGB", (8, 6), (20 * number, 3, 7)))


def captions() -> list[str]:
    return [f"thing number {number}" for number in range(COUNT)]


def written_images(folder: Path) -> list[str]:
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(png(number))
    return [f"{number}.png" for number in range(COUNT)]


def csv(folder: Path) -> Path:
    lines = [f"{name},{text}" for name, text in zip(written_images(folder), captions(), strict=True)]
    (folder / "pairs.csv").write_text("\n".join(["filepath,title", *lines]))
    return folder / "pairs.csv"


def json_lines(folder: Path) -> Path:
    pairs = zip(written_images(folder), captions(), strict=True)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps({"image": name, "caption": text}) for name, text in pairs))
    return folder / "pairs.jsonl"


def parquet(folder: Path) -> Path:
    rows = [{"image": {"bytes": png(n), "path": f"{n}.png"}, "text": text} for n, text in enumerate(captions())]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder


def webdataset(folder: Path) -> Path:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, text in enumerate(captions()):
            for suffix, content in (("png", png(number)), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder / "00000.tar"


def imagefolder(folder: Path) -> Path:
    for name, text in zip(written_images(folder), captions(), strict=True):
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "csv": csv,
    "imagefolder": imagefolder,
    "json": json_lines,
    "parquet": parquet,
    "webdataset": webdataset,
}
