"""Splits without leakage: groups of related rows are assigned to one split as a whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image as PILImage

from polymodal.modalities.image import to_rgb


class Groups:
    """Union-find over rows 0 ... count - 1; the root of a group is its smallest row."""

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
        """Join all rows that share a key. keys: (row, key), any number per row."""
        members: dict[Hashable, list[int]] = defaultdict(list)
        for row, key in keys:
            members[key].append(row)
        for rows in members.values():
            self.join(rows)


def connected_groups(*keys: Sequence[Hashable | None]) -> list[str]:
    """Return a group for each row: rows that share any key, such as an image or a page, directly or through others.

    keys: of each kind, one of each row; None joins nothing. A group is named by its first key.
    """
    groups = Groups(len(keys[0]))
    named = ((row, (kind, key)) for kind, held in enumerate(keys) for row, key in enumerate(held) if key is not None)
    groups.join_equal(named)
    return [str(keys[0][groups.root(row)]) for row in range(len(keys[0]))]


def thumbnail(image: PILImage.Image) -> np.ndarray:
    """Return a 16 x 16 x 3 thumbnail, 0-255, for near-duplicate detection."""
    small = to_rgb(image).resize((16, 16), PILImage.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def difference_hash(small: np.ndarray) -> np.uint64:
    """Return the 64 bits of whether each of 8 x 8 places is brighter than the one to its right (dHash).

    small: as from `thumbnail`. Equal images in other sizes and formats differ in few bits.
    """
    gray = PILImage.fromarray(small.mean(axis=2)).resize((9, 8), PILImage.Resampling.BOX)
    values = np.asarray(gray)
    return np.packbits(values[:, :-1] > values[:, 1:] + 0.5).view(">u8")[0].astype(np.uint64)


def join_alike(groups: Groups, thumbnails: np.ndarray, tolerance: float = 4.0, mirrored: bool = False) -> None:
    """Join rows whose thumbnails differ by at most `tolerance` on average; mirrored: also compare mirror images."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    for row, thumbnail_row in enumerate(thumbnails):
        for seen_rows in (thumbnail_row, thumbnail_row[:, ::-1]) if mirrored else (thumbnail_row,):
            difference = np.abs(flat[row:] - seen_rows.reshape(-1)).mean(axis=1)
            groups.join([row, *(row + np.flatnonzero(difference <= tolerance))])


def split_by_hash(group: str, test: float = 0.2, validation: float = 0.1) -> str:
    """Return the split of a group by hash, independent of other groups."""
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) / 2**32
    return "test" if position < test else "validation" if position < test + validation else "train"


def split_groups(
    categories: Sequence[str],
    groups: Sequence[str],
    test: float = 0.2,
    validation: float = 0.1,
    largest: float = 0.15,
) -> dict[str, str]:
    """Assign groups to splits, such that each category has about the same fraction of its rows in each split.

    categories, groups: of each row. Groups are ordered by a hash of their name, so the result is the same on every
    machine. A group with more than `largest` of a category's rows goes to training, else it would be the whole test set
    of that category.
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
