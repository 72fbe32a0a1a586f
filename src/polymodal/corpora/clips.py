"""Composed clips: one to three stamps, the first of which sounds, move over a ground; with sound, texts and questions.

Two seconds at 8 frames a second. Each stamp moves one way, grows, shrinks or stays; the sound track is the sound effect
of the first. `train`, `validation` and `test` are different clips of the same 60 stamps; those of `test_new` were seen
in none of them, by the splits of the corpus `stamps`. There are three texts of what is seen: `short` names the stamps,
`captions` says what they do, `long` also where they begin; and one of what is `heard`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.scenes import place_name
from polymodal.corpora.stamps import stamps
from polymodal.modalities import Audio, Category, Modality, Questions, Regions, Text, Video
from polymodal.modalities.audio import encoded
from polymodal.modalities.question import stored_questions
from polymodal.modalities.text import stored_texts
from polymodal.modalities.video import encode

SIDE, FRAMES, RATE = 96, 16, 8  # pixels, frames of a clip, frames a second
COUNTS = {"train": 4000, "validation": 200, "test": 400, "test_new": 300}
LOUD, SILENT = 20, 40  # stamps with and without a sound that all clips but those of test_new are made of
HOW_MANY = (0.25, 0.45, 0.3)  # how often a clip has one, two and three stamps
# what a stamp does -> where its centre starts and ends (shares of the side), and its size at the start and the end
MOTIONS = {
    "moves to the right": ((0.25, None), (0.75, None), (0.44, 0.44)),
    "moves to the left": ((0.75, None), (0.25, None), (0.44, 0.44)),
    "moves up": ((None, 0.75), (None, 0.25), (0.44, 0.44)),
    "moves down": ((None, 0.25), (None, 0.75), (0.44, 0.44)),
    "comes nearer": ((None, None), (None, None), (0.24, 0.56)),
    "goes away": ((None, None), (None, None), (0.56, 0.24)),
    "stays": ((None, None), (None, None), (0.44, 0.44)),
}

about = About(
    name="clips",
    version=2,
    description="4,900 composed clips of one to three stamps that move and sound, with texts, boxes and questions",
    license="GPL-2 (images and sounds of Tux Paint)",
    source="composed from the corpus 'stamps'",
    modalities=("video", "audio", "text", "regions", "questions", "category"),
    composed="every clip is composed; the sounds are recordings",
)


def clips() -> Corpus:
    """Open the corpus, composing it once (some minutes). Raises UserError without the package av."""
    columns: dict[str, Modality] = {
        "video": Video(FRAMES),
        "sound": Audio(),
        "captions": Text(),
        "regions": Regions(),
        "questions": Questions(),
        "short": Text(),
        "long": Text(),
        "heard": Text(),
        "motion": Category(tuple(MOTIONS)),
    }
    return open_prepared(about, columns, _rows, label="motion", prompts=lambda motion: (f"something {motion}",))


class Actor(NamedTuple):
    """Cut-out stamp. article: of its name. waveform: its sound effect, None for a silent one."""

    article: str
    name: str
    image: PILImage.Image
    waveform: np.ndarray | None


def _rows(prepare: Preparation) -> Iterator[Row]:
    known, new = (_actors(split) for split in ("train", "test"))
    order = np.random.default_rng(0)
    cast = [[some[place] for place in order.permutation(len(some))] for some in known]
    for place, (split, count) in enumerate(COUNTS.items()):
        loud, silent = new if split == "test_new" else (cast[0][:LOUD], cast[1][:SILENT])
        for number in prepare.track(range(count), f"Composing clips, {split}"):
            rng = np.random.default_rng([place, number])
            actors = [loud[rng.integers(len(loud))]]
            others = rng.choice(len(silent), size=rng.choice(len(HOW_MANY), p=HOW_MANY), replace=False)
            actors += [silent[other] for other in others]
            motions = [str(motion) for motion in rng.choice(list(MOTIONS), size=len(actors), replace=False)]
            frames, boxes = film(actors, motions, rng)
            waveform = actors[0].waveform
            assert waveform is not None
            length = Audio().rate * FRAMES // RATE
            track = np.zeros(length, np.float32)
            track[: min(len(waveform), length)] = waveform[:length]
            named = [f"{actor.article} {actor.name}" for actor in actors]
            doing = [f"{name} {motion}" for name, motion in zip(named, motions, strict=True)]
            placed = [f"{what}, first at the {place_name(box, SIDE)}" for what, box in zip(doing, boxes, strict=True)]
            yield {
                "key": f"{split}/{number}",
                "split": split,
                "video": encode(frames, RATE),
                "sound": encoded(track, Audio().rate, "OGG"),
                "captions": stored_texts(" and ".join(doing)),
                "regions": [{"name": actor.name, "box": box} for actor, box in zip(actors, boxes, strict=True)],
                "questions": _questions(actors, motions),
                "short": stored_texts(" and ".join(named)),
                "long": stored_texts("; ".join(placed)),
                "heard": stored_texts(f"the sound of {named[0]}"),
                "motion": motions[0],
            }


def _actors(split: str) -> tuple[list[Actor], list[Actor]]:
    """Return the actors with and without a sound, each name once."""
    corpus = stamps()
    loud: dict[str, Actor] = {}
    silent: dict[str, Actor] = {}
    sounding = corpus.has("sound")
    for row in corpus.rows(split):
        caption = corpus.value(int(row), "captions")[0].text.rstrip(".!")
        match = re.fullmatch(r"(An?) ([\w-]+(?: [\w-]+){0,2})", caption)
        if match is None:
            continue
        article, name = match[1].lower(), match[2]
        image = corpus.value(int(row), "image").convert("RGBA")
        box = image.getchannel("A").getbbox()
        image = image.crop(box) if box else image
        if sounding[row]:
            loud.setdefault(name, Actor(article, name, image, corpus.value(int(row), "sound")))
        else:
            silent.setdefault(name, Actor(article, name, image, None))
    return list(loud.values()), [actor for name, actor in silent.items() if name not in loud]


def film(actors: list[Actor], motions: list[str], rng: np.random.Generator) -> tuple[np.ndarray, list[list[int]]]:
    """Return uint8 frames x SIDE x SIDE x 3, and each actor's box in the first frame (left, top, right, bottom,
    pixels).

    The first actor occludes the others.
    """
    ground = tuple(int(value) for value in rng.integers(150, 256, size=3))
    paths = []
    for motion in motions:
        start, end, sizes = MOTIONS[motion]
        home = rng.uniform(0.3, 0.7, size=2)
        ends = [[home[axis] if value is None else value for axis, value in enumerate(point)] for point in (start, end)]
        paths.append((*ends, sizes))
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    boxes: list[list[int]] = []
    for number in range(FRAMES):
        image, share = PILImage.new("RGB", (SIDE, SIDE), ground), number / (FRAMES - 1)
        for actor, (start, end, sizes) in reversed(list(zip(actors, paths, strict=True))):  # the first is in front
            extent = max(4, round(SIDE * ((1 - share) * sizes[0] + share * sizes[1])))
            sprite = ImageOps.contain(actor.image, (extent, extent), PILImage.Resampling.BILINEAR)
            center = [(1 - share) * one + share * other for one, other in zip(start, end, strict=True)]
            left, top = (round(SIDE * middle - size / 2) for middle, size in zip(center, sprite.size, strict=True))
            image.paste(sprite, (left, top), sprite)
            if number == 0:
                edges = (left, top, left + sprite.width, top + sprite.height)
                boxes.insert(0, [min(max(edge, 0), SIDE) for edge in edges])
        frames[number] = np.asarray(image)
    return frames, boxes


def _questions(actors: list[Actor], motions: list[str]) -> list[dict[str, str]]:
    asked = [
        ("How many things are there?", str(len(actors)), "count"),
        ("What do you hear?", actors[0].name, "sound"),
    ]
    for actor, motion in zip(actors, motions, strict=True):
        other = list(MOTIONS)[(list(MOTIONS).index(motion) + 3) % len(MOTIONS)]
        asked.append((f"What {motion}?", actor.name, "object"))
        asked.append((f"What does the {actor.name} do?", f"it {motion}", "motion"))
        asked.append((f"Is it true that the {actor.name} {motion}?", "yes", "check"))
        asked.append((f"Is it true that the {actor.name} {other}?", "no", "check"))
    return stored_questions(asked)
