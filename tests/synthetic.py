"""One small corpus with a column of every modality that recipes read: composed from seeds, without any download.

Every example shows one of four objects in one of four colors. The color is in the image, the clip, the views, the
points, the page, the table and the sound; object and color are in the texts. So a method that learns anything at all
learns it here within a few steps.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image as PILImage

from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import open_saved, save_corpus
from polymodal.modalities import (
    Audio,
    Category,
    Expressions,
    Findings,
    History,
    Image,
    Images,
    Mask,
    Modality,
    Points,
    Preferences,
    Questions,
    Regions,
    Table,
    Text,
    Threads,
    Video,
    ViewCaptions,
    Volume,
    Words,
)
from polymodal.modalities.audio import encoded
from polymodal.modalities.history import Item
from polymodal.modalities.modality import to_npy
from polymodal.modalities.thread import stored_thread
from polymodal.modalities.video import encode

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
OBJECTS = ("square", "disk", "bar", "cross")
SIDE, RATE, ITEMS = 32, 16_000, 24
SPLITS = {"train": 24, "validation": 4, "test": 8}
CAPTIONED = ("hybrid_captions",)  # what needs captions in a synthetic format beside others
TRANSLATED = ("m3p",)  # what needs captions in two languages


def columns() -> dict[str, Modality]:
    """The modality of every column."""
    catalogue = tuple(Item(f"item {n}", f"a {list(COLORS)[n % 4]} thing", (f"kind {n % 4}",)) for n in range(ITEMS))
    return {
        "image": Image(),
        "text": Text({"en": 1.0}),
        "label": Category(tuple(COLORS)),
        "table": Table({"hue": "", "size": "cm"}, {"shape": OBJECTS, "shade": ("dark", "light")}),
        "video": Video(8),
        "sound": Audio(RATE),
        "points": Points(),
        "views": Images(),
        "view_captions": ViewCaptions(),
        "words": Words(("other", "color", "object")),
        "regions": Regions(),
        "mask": Mask(),
        "expressions": Expressions(),
        "questions": Questions(),
        "preferences": Preferences(),
        "history": History(catalogue),
        "thread": Threads(),
        "scan": Volume(("T1", "FLAIR")),
        "findings": Findings(tuple(f"{color} thing" for color in COLORS), ("top", "top", "bottom", "bottom")),
    }


def corpus(folder: Path) -> Corpus:
    """Write the corpus into a folder, and open it."""
    about = About("synthetic", "composed for tests", "CC0-1.0", "tests/synthetic.py", ("image", "text"))
    save_corpus(folder, about, columns(), rows(), label="label")
    return open_saved(folder)


def rows() -> Iterator[dict[str, Any]]:
    number = 0
    for split, count in SPLITS.items():
        places = range(number, number + count)
        for number in places:
            yield {"key": f"{split}-{number}", "split": split, "thread": thread(number, split, places)} | row(number)
        number += 1


def thread(number: int, split: str, places: range) -> dict[str, Any]:
    """A question and its answer; numbers 2 n and 2 n + 1 are duplicates. places: numbers of the rows of the split."""
    color, kind = list(COLORS)[number % 4], OBJECTS[number // 4 % 4]
    others = [
        (number ^ 1, 0),
        *((places[(number + 2 * label - places[0]) % len(places)], label) for label in (1, 2, 3)),
    ]
    links = [(f"{split}-{other}", label) for other, label in others if other // 2 != number // 2 or not label]
    parts = (
        f"how is a {color} {kind} drawn, {number}?",
        f"draw{number}({color})",
        f"with {kind}{number}",
        f"{kind}.draw({number})",
    )
    return stored_thread(parts, links)


def row(number: int) -> dict[str, Any]:
    """The stored values of one example."""
    rng = np.random.default_rng(number)
    color, kind = list(COLORS)[number % 4], OBJECTS[number // 4 % 4]
    pixels, mask, box = scene(color, kind, rng)
    corners = [float(edge) for edge in box]
    caption = f"a {color} {kind}"
    return {
        "image": png(pixels),
        "text": [{"text": caption, "language": "en"}, {"text": f"there is {caption} here", "language": "en"}],
        "label": color,
        "table": {
            "hue": number % 4 + rng.normal(0, 0.1),
            "size": float(box[2] - box[0]) if number % 5 else None,
            "shape": kind,
            "shade": ("dark", "light")[number % 2],
        },
        "video": encode(np.stack([np.roll(pixels, 2 * step, axis=1) for step in range(8)]), 8),
        "sound": encoded(tone(number % 4, rng), RATE, "WAV"),
        "points": to_npy(cloud(color, kind, rng)),
        "views": [png(np.rot90(pixels, turn).copy()) for turn in range(3)],
        "view_captions": [{"view": view, "text": caption, "fit": 0.5} for view in range(3)],
        "words": page(caption, color, kind),
        "regions": [{"name": caption[2:], "box": list(box)}],
        "mask": png(mask),
        "expressions": [
            {"text": f"the {color} {kind}", "boxes": [corners], "clauses": 2},
            {"text": "the purple moon", "boxes": [], "clauses": 2},
        ],
        "questions": [
            {"question": "What color is it?", "answer": color, "kind": "color", "rationale": f"The {kind} is {color}."},
            {"question": "What is it?", "answer": kind, "kind": "object", "rationale": ""},
        ],
        "preferences": [
            {"question": "What color is it?", "chosen": color, "rejected": other(color), "kind": "correctness"}
        ],
        "scan": {
            name: to_npy(blob(number % 4, rng)) if name == "T1" or number % 3 else None for name in ("T1", "FLAIR")
        },
        "findings": {f"{one} thing": f"a {one} thing in the {kind}." if one == color else None for one in COLORS},
        "history": sorted({int(item) for item in rng.integers(0, ITEMS // 4, 6) * 4 + number % 4}),
    }


def scene(color: str, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The pixels of an image with one object, its mask, and its box (left, top, right, bottom)."""
    side, (left, top) = 12, rng.integers(2, SIDE - 14, 2)
    y, x = np.mgrid[:SIDE, :SIDE] - np.array([top, left])[:, None, None]
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    shapes = {
        "square": inside,
        "disk": (x - 6) ** 2 + (y - 6) ** 2 <= 36,
        "bar": inside & (abs(y - 6) < 3),
        "cross": inside & ((abs(x - 6) < 2) | (abs(y - 6) < 2)),
    }
    pixels = np.full((SIDE, SIDE, 3), 235, np.uint8)
    pixels[shapes[kind]] = COLORS[color]
    return pixels, shapes[kind].astype(np.uint8), (int(left), int(top), int(left) + side, int(top) + side)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tone(level: int, rng: np.random.Generator) -> np.ndarray:
    """A second and a half of a tone whose frequency depends on the color: 37 frames for at most 26 characters."""
    time = np.arange(3 * RATE // 2) / RATE
    return (0.4 * np.sin(2 * np.pi * 300 * (level + 1) * time) + rng.normal(0, 0.01, len(time))).astype(np.float32)


def cloud(color: str, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Points of a box whose proportions say the object, with the color: x, y, z, red, green, blue."""
    sides = np.array([1.0, 1.0 + OBJECTS.index(kind), 0.5])
    rgb = np.tile(np.array(COLORS[color]) / 255, (128, 1))
    return np.concatenate([rng.uniform(-1, 1, (128, 3)) * sides, rgb], axis=1).astype(np.float32)


def blob(place: int, rng: np.random.Generator) -> np.ndarray:
    """Voxels with a bright cube in one of four corners."""
    voxels = rng.integers(0, 40, (14, 16, 18)).astype(np.uint8)
    first, second = 8 * (place // 2), 8 * (place % 2)
    voxels[first : first + 6, second : second + 6, 4:12] = 200
    return voxels


def page(caption: str, color: str, kind: str) -> list[dict[str, Any]]:
    """The words of the caption in a line, each with its box in thousandths and its field."""
    fields = {color: "color", kind: "object"}
    return [
        {
            "text": word,
            "box": [100 + 200 * place, 100, 280 + 200 * place, 140],
            "field": fields.get(word, "other"),
            "segment": place,
            "link": -1,
        }
        for place, word in enumerate(caption.split())
    ]


def other(color: str) -> str:
    """Another color."""
    return list(COLORS)[(list(COLORS).index(color) + 1) % 4]


def translated(text: str) -> str:
    """Every word in another language, which is the same letters the other way round."""
    return " ".join(word[::-1] for word in text.split())


def corpus_for(name: str, corpus: Corpus) -> Corpus:
    """The corpus; for what needs it, the second caption of each example is a short synthetic one, or a translation."""
    if name not in CAPTIONED + TRANSLATED:
        return corpus
    place, kind = corpus.table.column_names.index("text"), corpus.table.schema.field("text").type
    texts = corpus.table.column("text").to_pylist()
    if name in CAPTIONED:
        retagged = [[first, *({**other, "language": "en-x-ssc"} for other in others)] for first, *others in texts]
    else:
        retagged = [[first, {"text": translated(first["text"]), "language": "de"}] for first, *_ in texts]
    return replace(corpus, table=corpus.table.set_column(place, "text", pa.array(retagged, kind)))
