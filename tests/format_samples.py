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


def img2dataset(folder: Path) -> Path:
    """Its whole output: a shard, metadata with a download that failed, and statistics."""
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, text in enumerate(captions()):
            record = {"caption": text, "url": f"http://x/{number}", "key": f"{number:09d}", "width": 8, "height": 6}
            contents = {"jpg": png(number), "json": json.dumps(record).encode(), "txt": text.encode()}
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    rows = [
        {
            "url": f"http://x/{number}",
            "caption": text,
            "key": f"{number:09d}",
            "status": "success" if number < COUNT else "failed_to_download",
            "error_message": None if number < COUNT else "HTTP Error 404: Not Found",
        }
        for number, text in enumerate([*captions(), "gone"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text(json.dumps({"count": COUNT + 1, "successes": COUNT}))
    return folder


def saved_dataset(folder: Path) -> Path:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

    features = Features({"image": Image(), "text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = [
        {"image": {"bytes": png(n), "path": None}, "text": text, "label": n % 2} for n, text in enumerate(captions())
    ]
    whole = Dataset.from_list(rows, features=features)
    parts = DatasetDict({"train": whole.select(range(8)), "validation": whole.select(range(8, COUNT))})
    parts.save_to_disk(str(folder / "saved"))
    return folder / "saved"


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "csv": csv,
    "imagefolder": imagefolder,
    "img2dataset": img2dataset,
    "json": json_lines,
    "parquet": parquet,
    "saved_dataset": saved_dataset,
    "webdataset": webdataset,
}
