"""Reading JPEG shards: polymodal's shards against webdataset 1.0, on the same tar files, in one process, in turn.

Both deliver normalised batches of 64 images of 224 px with the tokens of their captions, made by the same functions.
webdataset runs twice: as its documentation shows it (`decode("pil")`, then resize), and tuned by hand with our decoder,
which lets the JPEG library drop resolution that is not needed. Captions and images are those of the emoji corpus,
twelve tiled to an image of 512 x 384. At the end: what as many threads, or processes, as there are cores add to it.

    pip install "webdataset>=1.0" && python benchmarks/loader.py
"""

from __future__ import annotations

import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.corpora.stream import from_shards
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.text import TextColumn
from polymodal.data.loader import Reader, TrainingData
from polymodal.data.processor import Processor
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.image import Image, to_rgb, to_square

EXAMPLES, SHARDS, SIZE, BATCH, BATCHES, ROUNDS = 1536, 3, 224, 64, 20, 5


def write_shards(folder: Path) -> None:
    emoji, rng = corpora.emoji(), np.random.default_rng(0)
    drawn = [to_rgb(emoji.value(row, "image")).resize((128, 128)) for row in emoji.rows("train")[:400]]
    captions = [emoji.value(row, "captions")[0].text for row in emoji.rows("train")[:400]]
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(EXAMPLES // SHARDS):
                chosen = rng.integers(len(drawn), size=12)
                sheet = PILImage.new("RGB", (512, 384))
                for place, index in enumerate(chosen):
                    sheet.paste(drawn[index], (128 * (place % 4), 128 * (place // 4)))
                buffer = io.BytesIO()
                sheet.save(buffer, "JPEG", quality=90)
                text = ", ".join(captions[index] for index in chosen[:4])
                for suffix, data in (("jpg", buffer.getvalue()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{shard}-{number:05d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def whole_then_resized(image: PILImage.Image) -> np.ndarray:
    """The shorter side to 224, then the centre, from the whole decoded image."""
    width, height = image.size
    scale = SIZE / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), PILImage.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.array(image.crop((left, top, left + SIZE, top + SIZE)))


def batch_of(processor: Processor, images: list[Any], texts: list[str]) -> dict[str, Any]:
    return {"image": processor.image.normalize(processor.image.pixels(images)), "text": processor.tokenizer(texts)}


def with_webdataset(folder: Path, processor: Processor, tuned: bool) -> Iterator[dict[str, Any]]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    examples = webdataset.WebDataset(shards, shardshuffle=SHARDS, empty_check=False).repeat().shuffle(1000)
    if tuned:
        decoded = examples.to_tuple("jpg", "txt").map_tuple(
            lambda data: to_square(Image().decode(data), SIZE), lambda data: data.decode()
        )
    else:
        decoded = examples.decode("pilrgb").to_tuple("jpg", "txt").map_tuple(whole_then_resized, lambda text: text)
    for images, texts in decoded.batched(BATCH, collation_fn=lambda rows: tuple(zip(*rows, strict=True))):
        yield batch_of(processor, list(images), list(texts))


def with_polymodal(folder: Path, processor: Processor, **ahead: int) -> Generator[dict[str, Any]]:
    corpus = from_shards(str(folder))

    def make(examples: list[Any], processor: Processor, _: Any) -> dict[str, Any]:
        texts = [example["text"][0].text for example in examples]
        return batch_of(processor, [example["image"] for example in examples], texts)

    data = TrainingData(Reader(corpus, processor), BATCH, 0, make, **ahead)
    try:
        while True:
            yield next(data)[0]
    finally:
        data.close()


def rate(batches: Iterator[dict[str, Any]]) -> float:
    """Examples a second over some batches."""
    begin = time.perf_counter()
    for _ in range(BATCHES):
        assert next(batches)["image"].shape == (BATCH, 3, SIZE, SIZE)
    return BATCH * BATCHES / (time.perf_counter() - begin)


def ahead_of_the_step(folder: Path, processor: Processor) -> None:
    """Whoever prepares batches is started and ended in every round, so that nobody works while others are timed."""
    cores = os.cpu_count() or 1
    ways = {"when asked": {}, "threads": {"num_threads": cores}, "processes": {"num_workers": cores}}
    rates: dict[str, list[float]] = {label: [] for label in ways}
    for _ in range(ROUNDS):
        for label, how in ways.items():
            batches = with_polymodal(folder, processor, **how)
            for _ in range(4 * cores):  # what was prepared before the clock starts
                next(batches)
            rates[label].append(rate(batches))
            batches.close()
    for label, found in rates.items():
        ratio = statistics.median(own / one for own, one in zip(found, rates["when asked"], strict=True))
        print(f"{label:<24} {statistics.median(found):7.0f} examples/s on {cores} cores   {ratio:.2f} x")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder)
        processor = Processor.fit(
            [corpora.emoji()], {"image": ImageColumn(SIZE), "text": TextColumn(TextEncoderConfig())}
        )
        make: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
            "polymodal": lambda: with_polymodal(folder, processor),
            "webdataset": lambda: with_webdataset(folder, processor, tuned=False),
            "webdataset, our decoder": lambda: with_webdataset(folder, processor, tuned=True),
        }
        running = {label: start() for label, start in make.items()}
        for batches in running.values():
            next(batches)  # opens files, fills the shuffle buffer
        rates: dict[str, list[float]] = {label: [] for label in make}
        for _ in range(ROUNDS):
            for label, batches in running.items():
                rates[label].append(rate(batches))
        ours = rates["polymodal"]
        for label, found in rates.items():
            ratio = statistics.median(one / other for one, other in zip(ours, found, strict=True))
            print(f"{label:<24} {statistics.median(found):7.0f} examples/s on one core   polymodal is {ratio:.2f} x")
        ahead_of_the_step(folder, processor)


if __name__ == "__main__":
    main()
