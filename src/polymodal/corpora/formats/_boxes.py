"""Images with boxes around named objects, as data sets of detection have them: regions, and expressions of the names.

The name of a class is an expression with the boxes of all its objects in the image, which makes detection a case of
phrase grounding (GLIP, Li et al. 2022, section 3.1).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import ExifTags

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import annotation_table, chunks_of
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.formats._media_folder import not_read_beside
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Expressions, Image, Regions
from polymodal.modalities.image import PNG_METADATA, open_header
from polymodal.modalities.image_modes import TURNED

SCHEMA = pa.schema({"image": pa.string(), "regions": Regions().arrow_type, "expressions": Expressions().arrow_type})
NOTES = b"notes"
HEAD = 1 << 18  # bytes of a JPEG file in which its size and orientation are looked for
Edges = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class NamedBox(NamedTuple):
    """An object of an image."""

    name: str
    edges: Edges


class StoredSize(NamedTuple):
    """Width and height of an image as it is stored, and its EXIF orientation (1: upright)."""

    width: int
    height: int
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)

    def turned(self, edges: Edges) -> Edges:
        """Return the box in the upright image of a box in the stored one."""
        points = [self._turned(*edges[:2]), self._turned(*edges[2:])]
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
        return left, top, right, bottom

    def _turned(self, x: float, y: float) -> tuple[float, float]:
        from_right, from_bottom = self.width - x, self.height - y
        places = {
            2: (from_right, y),
            3: (from_right, from_bottom),
            4: (x, from_bottom),
            5: (y, x),
            6: (from_bottom, x),
            7: (from_bottom, from_right),
            8: (y, from_right),
        }
        return places.get(self.orientation, (x, y))


def stored_size(file: Path) -> StoredSize:
    """Return the size of an image file. Raises UnreadableExample for a damaged one, OSError where it is missing."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
        whole = head if head.startswith(b"\xff\xd8") else head + stream.read()
        try:
            image = open_header(whole)
        except Exception:  # a JPEG file whose frame begins late, behind a large profile
            whole = head + stream.read()
            image = open_header(whole)
    if image.format == "PNG" and not any(mark in whole for mark in PNG_METADATA):
        return StoredSize(*image.size)
    orientation = 1
    with suppress(Exception):  # damaged EXIF data; the image may be whole
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return StoredSize(*image.size, orientation if orientation in TURNED else 1)


def _in_pixels(edges: Edges) -> list[int]:
    """Return a box in whole pixels; one that is smaller than a pixel is that pixel."""
    left, top, right, bottom = map(round, edges)
    if left == right:
        left, right = math.floor(edges[0]), math.ceil(edges[2])
    if top == bottom:
        top, bottom = math.floor(edges[1]), math.ceil(edges[3])
    return [left, top, right, bottom]


def clipped(edges: Edges, size: tuple[int, int]) -> Edges | None:
    """Return the part of a box that is in an image; None where there is none."""
    left, right = (min(max(edge, 0.0), float(size[0])) for edge in edges[::2])
    top, bottom = (min(max(edge, 0.0), float(size[1])) for edge in edges[1::2])
    return (left, top, right, bottom) if left < right and top < bottom else None


@dataclass
class BoxRecords:
    """Objects by image, with the numbers of what is left out. left_out: examples by reason. notes: for the user."""

    boxes: dict[str, list[NamedBox]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)

    def conversion(self, names: Sequence[str]) -> Conversion:
        """Return the rows. names: of all classes."""
        used = list(names) or sorted({box.name for boxes in self.boxes.values() for box in boxes})
        schema = SCHEMA.with_metadata({NOTES: json.dumps(self.notes)})
        skipped = [Skipped(len(examples), reason, examples[0]) for reason, examples in self.left_out.items()]
        return Conversion(schema, chunks_of(self._rows(used), schema), skipped)

    def _rows(self, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        without = 0
        for path, boxes in self.boxes.items():
            edges_of: dict[str, list[Edges]] = defaultdict(list)
            for box in dict.fromkeys(boxes):
                edges_of[box.name].append(box.edges)
            if not edges_of and names:  # an expression without an object, of each class in turn
                edges_of[names[without % len(names)]] = []
                without += 1
            yield {
                "image": path,
                "regions": [{"name": name, "box": _in_pixels(edges)} for name, edges in dict.fromkeys(boxes)],
                "expressions": [{"text": name, "boxes": some, "clauses": 0} for name, some in edges_of.items()] or None,
            }


def box_rows(
    data: DataFiles,
    root: Path,
    kind: str,
    files: Sequence[Path],
    convert: Callable[[], Conversion],
    splits_of_images: Callable[[Sequence[str]], tuple[Sequence[str | None], Sequence[str]]],
    used: Sequence[Path] = (),
) -> Rows:
    """Return the rows of the images, converted once.

    files: those that are read. splits_of_images: returns the split of each path from the root, None where none is
    stated, and sentences about them. used: further files that have been read.
    """
    table, skipped = annotation_table(f"{kind} {root}", files, convert)
    if table.num_rows == 0:
        example = f": {skipped[0].example} {skipped[0].reason}" if skipped else ""
        raise UserError(f"No image of {root} can be read as {kind}{example}.")
    notes = list(json.loads((table.schema.metadata or {}).get(NOTES, b"[]")))
    stated, said_of_splits = splits_of_images(table.column("image").to_pylist())
    split = np.array([name or "" for name in stated], dtype=object)
    present = {*split.tolist()} - {""}
    if present and ("train" not in present or len(present) == 1):
        listed = " or ".join(f"'{name}'" for name in sorted(present))
        said_of_splits = [f"All images that are there are of the split {listed}; they are split by content."]
    if present and (count := int((split == "").sum())):
        example = table.column("image")[int(np.flatnonzero(split == "")[0])]
        skipped = (*skipped, Skipped(count, "is an image of no split that is stated", str(example)))
        table, split = table.filter(pa.array(split != "")), split[split != ""]
    if present and ("train" not in present or len(present) == 1):
        split = np.array([""] * len(split), dtype=object)
    read = {*files, *used}
    notes += [*said_of_splits, *not_read_beside(data, "image", read, set())]
    return Rows(
        table.replace_schema_metadata(None),
        root,
        {"image": Image(root), "regions": Regions(), "expressions": Expressions()},
        split if (split != "").any() else None,
        keys="image",
        skipped=skipped,
        notes=tuple(notes),
    )
