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


def coco(folder: Path) -> Path:
    """The published layout: `annotations/` beside a folder of images for each split."""
    (folder / "annotations").mkdir()
    for split, numbers in {"train2017": range(9), "val2017": range(9, COUNT)}.items():
        (folder / split).mkdir()
        images = []
        for number in numbers:
            (folder / split / f"{number:012d}.jpg").write_bytes(png(number))
            url = f"http://images.cocodataset.org/{split}/{number:012d}.jpg"
            size = {"height": 6, "width": 8}
            images.append({"license": 3, "file_name": f"{number:012d}.jpg", "coco_url": url, **size, "id": number})
        frame = {"info": {"year": 2017}, "licenses": [{"id": 3, "name": "x"}], "images": images}
        texts = [
            {"image_id": number, "id": 10 * number + place, "caption": f"thing {number}, said {place}"}
            for number in numbers
            for place in range(5)
        ]
        boxes = [
            {
                "segmentation": [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]],
                "area": 6.0,
                "iscrowd": 0,
                "image_id": number,
                "bbox": [1.2, 2.1, 3.0, 2.0],
                "category_id": 18,
                "id": number,
            }
            for number in numbers
        ]
        categories = [{"supercategory": "animal", "id": 18, "name": "dog"}]
        captions = json.dumps({**frame, "annotations": texts})
        instances = json.dumps({**frame, "annotations": boxes, "categories": categories})
        (folder / "annotations" / f"captions_{split}.json").write_text(captions)
        (folder / "annotations" / f"instances_{split}.json").write_text(instances)
    return folder


def imagefolder(folder: Path) -> Path:
    for name, text in zip(written_images(folder), captions(), strict=True):
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "coco": coco,
    "csv": csv,
    "imagefolder": imagefolder,
    "json": json_lines,
    "parquet": parquet,
    "webdataset": webdataset,
}
