"""Reading of users' data formats: polymodal against the plain library that reads each, on the same files, in turn.

Each is timed over all examples, with images decoded to RGB: every row of an open corpus, against a loop that a user
would write with the csv, json, pyarrow, Pillow and tarfile libraries. Ratios are medians over rounds, of pairs in one
round. Opening, which is timed apart, converts CSV, JSON, Parquet and tar the first time, and finds splits by comparing
contents.

Then every format but videofolder and saved_corpus, by a sample of --rows rows that the writers of the tests make (of
PDF and SDF, whose samples are slow to write, a twentieth): CPU seconds of opening it the first time and again, and
examples a second with all columns decoded. Last, in processes of their own: CPU seconds and peak memory, mapped files
included, of opening a large CSV, and of opening and reading a set of 100 tar shards.

    python benchmarks/formats.py --large-rows 1000000     # of the CSV; 200,000 without
    python benchmarks/formats.py --rows 1000 --only samples
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

from polymodal.corpora import Corpus, from_path, from_shards
from polymodal.modalities.image import encoded, to_rgb

EXAMPLES, SIZE, ROUNDS, SHARDS, OF_SHARD = 500, 256, 7, 100, 20  # examples, pixels a side, pairs of timings
SLOW = ("pdf", "sdf")  # to write
OPENING = """
import resource, sys, time
from polymodal.corpora import from_path, from_shards
import torch, PIL.Image, polymodal.modalities
base, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
corpus = from_shards(sys.argv[2]) if sys.argv[1] == "stream" else from_path(sys.argv[2])
opened = time.process_time() - begin
order = corpus.parts("train")[0].order
rows = [order(0)[place] for place in range(len(corpus.rows("train")))] if order else range(0)
for row in rows:
    corpus.raw(row, "image")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(corpus), opened, base / 1024, peak / 1024)
"""


def jpeg(rng: np.random.Generator) -> bytes:
    coarse = PILImage.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((SIZE, SIZE), PILImage.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_all(folder: Path, images: list[bytes], captions: list[str]) -> dict[str, Path]:
    """Write the same examples in each format; return the path of each."""
    plain = folder / "imagefolder"
    plain.mkdir()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        (plain / f"{number:05d}.jpg").write_bytes(image)
        (plain / f"{number:05d}.txt").write_text(caption)
    names = [f"{number:05d}.jpg" for number in range(len(images))]
    for name in ("csv", "json", "parquet", "webdataset"):
        (folder / name).mkdir()
    for name in ("csv", "json"):
        (folder / name / "images").symlink_to(plain)
    places = [f"images/{name}" for name in names]
    with (folder / "csv" / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *zip(places, captions, strict=True)])
    records = [{"image": place, "caption": caption} for place, caption in zip(places, captions, strict=True)]
    (folder / "json" / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, folder / "parquet" / "0.parquet", row_group_size=100)
    write_tar(folder / "webdataset" / "0.tar", enumerate(zip(images, captions, strict=True)))
    files = {"csv": "csv/pairs.csv", "json": "json/pairs.jsonl", "parquet": "parquet/0.parquet"}
    return {name: folder / place for name, place in (files | {"webdataset": "webdataset/0.tar"}).items()} | {
        "imagefolder": plain
    }


def write_tar(path: Path, pairs: Iterable[tuple[int, tuple[bytes, str]]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, (image, caption) in pairs:
            for suffix, content in (("jpg", image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


Pairs = Iterator[tuple[PILImage.Image, str]]


def from_csv(path: Path) -> Pairs:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield PILImage.open(path.parent / row["image"]).convert("RGB"), row["caption"]


def from_json_lines(path: Path) -> Pairs:
    with path.open() as file:
        for line in file:
            row = json.loads(line)
            yield PILImage.open(path.parent / row["image"]).convert("RGB"), row["caption"]


def from_parquet(path: Path) -> Pairs:
    for batch in pq.ParquetFile(path).iter_batches(batch_size=100):
        for row in batch.to_pylist():
            yield PILImage.open(io.BytesIO(row["image"])).convert("RGB"), row["caption"]


def from_tar(path: Path) -> Pairs:
    with tarfile.open(path) as tar:
        members = iter(tar)
        for image, caption in zip(members, members, strict=True):
            content, text = tar.extractfile(image).read(), tar.extractfile(caption).read()  # type: ignore[union-attr]
            yield PILImage.open(io.BytesIO(content)).convert("RGB"), text.decode()


def from_folder(path: Path) -> Pairs:
    for file in sorted(path.glob("*.jpg")):
        yield PILImage.open(file).convert("RGB"), file.with_suffix(".txt").read_text()


def of_corpus(corpus: Corpus) -> Pairs:
    image, text = (next(n for n, k in corpus.columns.items() if type(k).__name__ == kind) for kind in ("Image", "Text"))
    for row in range(len(corpus)):
        yield to_rgb(corpus.value(row, image)), corpus.value(row, text)[0].text


def seconds(read: Callable[[], Pairs], count: int) -> float:
    """Return the seconds of this process's CPU, which other processes change little; the files are in memory."""
    begin = time.process_time()
    captions = {caption for image, caption in read() if image.size == (SIZE, SIZE)}
    assert len(captions) == count
    return time.process_time() - begin


def rates(paths: dict[str, Path], count: int) -> None:
    plain = {
        "csv": from_csv,
        "json": from_json_lines,
        "parquet": from_parquet,
        "webdataset": from_tar,
        "imagefolder": from_folder,
    }
    streams = {f"stream of {name}": paths[name] for name in ("parquet", "webdataset")}
    for name, path in (paths | streams).items():
        begin = time.perf_counter()
        corpus = from_shards(str(path)) if name in streams else from_path(path)
        opened = time.perf_counter() - begin
        read, loop = partial(of_corpus, corpus), partial(plain[name.rpartition(" ")[2]], path)
        times = [(seconds(read, count), seconds(loop, count)) for _ in range(ROUNDS)]
        ratio = statistics.median(plain / own for own, plain in times)
        rate = count / statistics.median(own for own, _ in times)
        print(f"{name:<21} {rate:7,.0f} examples/s, {ratio:.2f} x the plain loop; opened in {opened:.2f} s", flush=True)


def written_samples(rows: int, folder: Path, chosen: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield the name and the path of a sample of each format, with images of 8 x 6 pixels that all differ."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    samples = importlib.import_module("format_samples")
    samples.png = lambda number: encoded(PILImage.new("RGB", (8, 6), (number % 256, number // 256 % 256, 7)))

    def audiofolder(folder: Path) -> Path:
        for number in range(rows):
            samples.wav(folder / f"{number}.wav", number).with_suffix(".txt").write_text(f"about {number}")
        return folder

    every = samples.SAMPLES | {"audiofolder": audiofolder}
    for name in chosen or every:
        samples.COUNT = max(rows // 20, 1) if name in SLOW else rows
        (folder / name).mkdir()
        yield name, every[name](folder / name)


def all_formats(rows: int, folder: Path, chosen: Sequence[str]) -> None:
    """Time opening and reading of a sample of each format. What is printed says how many rows a sample has."""
    for name, path in written_samples(rows, folder, chosen):
        opened = []
        for _ in range(2):
            begin = time.process_time()
            corpus = from_path(path)
            opened.append(time.process_time() - begin)
        begin = time.process_time()
        for column in corpus.columns:
            for row in np.flatnonzero(corpus.has(column)).tolist():
                value = corpus.value(row, column)
                if isinstance(value, PILImage.Image):  # Pillow decodes pixels when they are used
                    value.load()
        spent = time.process_time() - begin
        print(
            f"{name:<14} {len(corpus):7,} rows opened in {opened[0]:6.2f} s of CPU, again in {opened[1]:5.2f}; "
            f"{len(corpus) / spent:9,.0f} examples/s of {', '.join(corpus.columns)}",
            flush=True,
        )


def opening(kind: str, path: Path, what: str, cache: Path) -> None:
    """Open twice in new processes: without a copy in the cache, and with it."""
    environment = os.environ | {"POLYMODAL_CACHE": str(cache)}
    for time_of in ("first time", "again"):
        command = [sys.executable, "-c", OPENING, kind, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        count, opened, base, peak = map(float, done.stdout.split())
        print(
            f"{what}, {time_of}: {count:,.0f} examples opened in {opened:.1f} s of CPU, peak memory {peak - base:+.0f} "
            f"MiB over the {base:.0f} of the imports",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the sample of every format")
    parser.add_argument("--large-rows", type=int, default=200_000, help="rows of the large CSV")
    parser.add_argument("--only", choices=("rates", "samples", "opening"), help="one of the three measurements")
    parser.add_argument("--formats", nargs="+", default=(), help="those whose samples are timed; all without")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["POLYMODAL_CACHE"] = str(folder / "cache")
        images = [jpeg(rng) for _ in range(EXAMPLES)]
        captions = [f"caption of the image {number}" for number in range(EXAMPLES)]
        if options.only in (None, "rates"):
            rates(write_all(folder, images, captions), EXAMPLES)
        if options.only in (None, "samples"):
            (folder / "samples").mkdir()
            all_formats(options.rows, folder / "samples", options.formats)
        if options.only in (None, "opening"):
            openings(folder, images, options.large_rows)


def openings(folder: Path, images: list[bytes], rows: int) -> None:
    """Measure a large CSV, and a set of tar shards."""
    large = folder / "large.csv"
    with large.open("w") as file:
        file.write("text,label\n")
        file.writelines(f"a sentence about the thing of number {row},{row % 10}\n" for row in range(rows))
    opening("whole", large, f"CSV of {large.stat().st_size >> 20} MiB", folder / "of_csv")
    shards = folder / "shards"
    shards.mkdir()
    for shard in range(SHARDS):
        numbers = range(shard * OF_SHARD, (shard + 1) * OF_SHARD)
        write_tar(shards / f"{shard:05d}.tar", ((n, (images[n % EXAMPLES] * 20, f"about {n}")) for n in numbers))
    size = sum(file.stat().st_size for file in shards.iterdir()) >> 20
    for kind in ("whole", "stream"):
        opening(kind, shards, f"{SHARDS} tar shards of {size} MiB, {kind}", folder / kind)


if __name__ == "__main__":
    main()
