"""Splits that do not leak: what belongs together is dealt to one side as a whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image as PILImage

from polymodal.modalities.image import to_rgb


class Groups:
    """Rows 0 ... count-1 joined into groups (union-find); a group's root is its smallest row."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = row = self._parent[self._parent[row]]
        return row

    def join(self, rows: Iterable[int]) -> None:
        first, *rest = sorted({self.root(row) for row in rows})
        for row in rest:
            self._parent[row] = first

    def join_equal(self, keys: Iterable[tuple[int, Hashable]]) -> None:
        """Join all rows that share a key. keys: (row, key), any number a row."""
        members: dict[Hashable, list[int]] = defaultdict(list)
        for row, key in keys:
            members[key].append(row)
        for rows in members.values():
            self.join(rows)


def thumbnail(image: PILImage.Image) -> np.ndarray:
    """16 x 16 x 3 values on the scale 0-255, to tell whether two images look alike."""
    small = to_rgb(image).resize((16, 16), PILImage.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def join_alike(groups: Groups, thumbnails: np.ndarray, tolerance: float = 4.0, mirrored: bool = False) -> None:
    """Join rows whose thumbnails differ by at most `tolerance` on average; mirrored: also from their mirror images."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    for row, own in enumerate(thumbnails):
        for seen in (own, own[:, ::-1]) if mirrored else (own,):
            difference = np.abs(flat[row:] - seen.reshape(-1)).mean(axis=1)
            groups.join([row, *(row + np.flatnonzero(difference <= tolerance))])


def split_by_hash(group: str, test: float = 0.2, validation: float = 0.1) -> str:
    """A split that a group has of its own, whatever other groups there are."""
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) / 2**32
    return "test" if place < test else "validation" if place < test + validation else "train"


def split_groups(
    categories: Sequence[str],
    groups: Sequence[str],
    test: float = 0.2,
    validation: float = 0.1,
    largest: float = 0.15,
) -> dict[str, str]:
    """group -> split, so that each category gives about the same share of its rows to each split.

    categories, groups: of each row. The order in which groups are dealt comes from a hash of their name, so it is the
    same on every machine. A group with more than `largest` of a category's rows goes to training, or it would be the
    whole test of that category.
    """
    sizes: dict[str, int] = defaultdict(int)
    for group in groups:
        sizes[group] += 1
    category_of: dict[str, str] = {}
    for category, group in zip(categories, groups, strict=True):
        category_of.setdefault(group, category)
    totals: dict[str, int] = defaultdict(int)
    for group, category in category_of.items():
        totals[category] += sizes[group]
    dealt: dict[tuple[str, str], int] = defaultdict(int)
    splits = {}
    for group in sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest()):
        category = category_of[group]
        splits[group] = "train"
        if sizes[group] > largest * totals[category]:
            continue
        for split, share in (("test", test), ("validation", validation)):
            if dealt[split, category] + sizes[group] <= share * totals[category] + 0.5:
                splits[group] = split
                dealt[split, category] += sizes[group]
                break
    return splits
