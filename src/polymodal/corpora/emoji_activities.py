"""Emoji of people by activity, of which few have a label, and captioned emoji of everything else.

Classes are by words of an emoji's English name: `moving` (running, swimming, biking ...), `gesturing` (bowing,
shrugging, raising hand ...) and `working` (cook, pilot, teacher ...). Emoji without such a word have no label: with
their names and keywords they are for pre-training, from which all near-duplicates of a labelled emoji are left out. The
groups of near-duplicates (the genders of one activity, from all vendors) never straddle a split: `train`, `validation`
and `test` are images of Google, Twitter and Fluent, and `test_openmoji` are those of a vendor that is never trained on.
Of a group, a test split has one image a vendor. The name of a labelled emoji says its activity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text

WORDS = {
    "moving": r"walking|running|surfing|swimming|lifting weights|golfing|rowing|biking|cartwheeling|juggling|fencing"
    r"|wrestling|water polo|handball|climbing|bouncing ball|skier|snowboarder|horse racing|(wo)?man dancing",
    "gesturing": r"bowing|facepalming|frowning|gesturing|pouting|raising hand|shrugging|tipping hand|deaf",
    "working": r"farmer|cook|singer|artist|teacher|factory worker|technologist|office worker|mechanic|scientist"
    r"|astronaut|firefighter|health worker|judge|pilot|police officer|construction worker|guard|detective",
}
PATTERNS = {name: re.compile(rf"\b({words})\b") for name, words in WORDS.items()}
PEOPLE = "People & Body"  # the category of labelled emoji: "running shirt" is none
HELD_OUT = "openmoji"  # the vendor of the shifted test
TEST, VALIDATION = 0.42, 0.2  # of the images of a class

about = About(
    name="emoji_activities",
    description="900 images of people by activity in three classes, and 6,000 other captioned emoji without a label",
    license="as of the corpus 'emoji'",
    source="composed from the corpus 'emoji'",
    modalities=("image", "text", "category"),
    composed="classes are by words of names",
)


def emoji_activities() -> Corpus:
    """Open the corpus, preparing it and `emoji` once. Raises UserError when that is not possible."""
    columns: dict[str, Modality] = {
        "image": Image(),
        "captions": Text({"en": 1.0}),
        "activity": Category(tuple(WORDS)),
        "category": Category(),
    }
    return open_prepared(
        about,
        columns,
        _rows,
        further={"group": pa.string(), "vendor": pa.string()},
        label="activity",
        prompts=lambda name: (f"a person who is {name}",),
    )


def activity_of(name: str) -> str | None:
    """Return the class of an emoji by its English name; None where no words of exactly one class are in it."""
    activities = [activity for activity, pattern in PATTERNS.items() if pattern.search(name)]
    return activities[0] if len(activities) == 1 else None


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn = emoji()
    names = ("concept", "group", "category", "vendor")
    facts = list(zip(*(drawn.table.column(name).to_pylist() for name in names), strict=True))
    activities = [activity_of(concept) if category == PEOPLE else None for concept, _, category, _ in facts]
    labelled = [row for row, activity in enumerate(activities) if activity is not None]
    groups = [facts[row][1] for row in labelled]
    split_of = split_groups([activities[row] or "" for row in labelled], groups, test=TEST, validation=VALIDATION)
    # Of a group and vendor, the same image at random is tested each time.
    by_hash = sorted(labelled, key=lambda row: hashlib.sha256(drawn.key(row).encode()).digest())
    tested = {(facts[row][1], facts[row][3]): row for row in by_hash}
    for row in prepare.track(range(len(drawn)), "Reading emoji", len(drawn)):
        _, group, category, vendor = facts[row]
        split: str | None = "train" if group not in split_of else None  # else a near-duplicate of a labelled emoji
        if activities[row] is not None:
            split = split_of[group]
        if split == "test":
            shown = tested[group, vendor] == row
            split = None if not shown else f"test_{HELD_OUT}" if vendor == HELD_OUT else "test"
        elif vendor == HELD_OUT:
            split = None
        yield {
            "key": drawn.key(row),
            "split": split,
            "image": drawn.raw(row, "image"),
            "captions": [text for text in drawn.raw(row, "captions") if text["language"] == "en"],
            "activity": activities[row],
            "category": category,
            "group": group,
            "vendor": vendor,
        }
