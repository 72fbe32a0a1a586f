"""Emoji of people by what they do, of which one vendor's have a label, and captioned emoji of everything else.

Classes are activities: a word of an emoji's English name, such as running, shrugging or cook. Emoji without such a word
have no label: with their names and keywords they are for pre-training, from which all near-duplicates of a labelled
emoji are left out, of whatever vendor. Labels of `train` are of Google's images, up to six of a class (genders and
directions); of other vendors one image of each group of near-duplicates is `validation` (Twitter), `test` (Fluent, in
the style of which only images without a label are trained on) or `test_openmoji` (a style that is never trained on). So
a test example is another drawing than any of training, and no two of a split are of one group. The name of a labelled
emoji says its activity.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.modalities import Category, Image, Modality, Text

WORDS = (
    "walking|running|surfing|swimming|lifting weights|golfing|rowing boat|biking|cartwheeling|juggling|fencing"
    "|wrestling|playing water polo|playing handball|climbing|bouncing ball|skier|snowboarder|horse racing|dancing"
    "|bowing|facepalming|frowning|gesturing NO|gesturing OK|pouting|raising hand|shrugging|tipping hand|deaf"
    "|farmer|cook|singer|artist|teacher|factory worker|technologist|office worker|mechanic|scientist|astronaut"
    "|firefighter|health worker|judge|pilot|police officer|construction worker|guard|detective"
)
ACTIVITIES = tuple(WORDS.split("|"))
PATTERN = re.compile(rf"\b({WORDS})\b")
PEOPLE = "People & Body"  # the category of labelled emoji: "running shirt" is none
SPLITS = {"google": "train", "twitter": "validation", "fluent": "test", "openmoji": "test_openmoji"}  # of labels
UNSEEN = "openmoji"  # the vendor that is never trained on

about = About(
    name="emoji_activities",
    version=2,
    description="300 images of people by activity in 49 classes, and 4,900 other captioned emoji without a label",
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
        "activity": Category(ACTIVITIES),
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
    """Return the class of an emoji by its English name; None without words of exactly one."""
    words = set(PATTERN.findall(name))
    return words.pop() if len(words) == 1 else None


def _rows(prepare: Preparation) -> Iterator[Row]:
    drawn = emoji()
    names = ("concept", "group", "category", "vendor")
    facts = list(zip(*(drawn.table.column(name).to_pylist() for name in names), strict=True))
    activities = [activity_of(concept) if category == PEOPLE else None for concept, _, category, _ in facts]
    labelled = [row for row, activity in enumerate(activities) if activity is not None]
    groups = {facts[row][1] for row in labelled}
    # Of a group and vendor, the same image at random is tested each time.
    by_hash = sorted(labelled, key=lambda row: hashlib.sha256(drawn.key(row).encode()).digest())
    tested = {(facts[row][1], facts[row][3]): row for row in by_hash}
    for row in prepare.track(range(len(drawn)), "Reading emoji", len(drawn)):
        _, group, category, vendor = facts[row]
        split: str | None = None
        if activities[row] is not None:
            split = SPLITS[vendor] if SPLITS[vendor] == "train" or tested[group, vendor] == row else None
        elif group not in groups and vendor != UNSEEN:  # else a near-duplicate of a labelled emoji
            split = "train"
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
