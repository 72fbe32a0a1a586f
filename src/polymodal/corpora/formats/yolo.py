"""YOLO (Darknet, Ultralytics, Roboflow, CVAT, Label Studio): a text file for each image, in `labels/` or beside it.

A line is the number of a class, and center, width and height of a box as fractions of the image; or the class and the
corners of a polygon; or a box with keypoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.formats._boxes import BoxRecords, Edges, NamedBox, box_rows, clipped, stored_size
from polymodal.corpora.formats._data_files import DataFiles, Match, place_of
from polymodal.corpora.formats._delimited import decoded, head_lines
from polymodal.corpora.formats._yolo_settings import (
    CLASSES,
    YoloSettings,
    folder_of,
    is_settings,
    settings_of,
    split_lists,
    yolo_splits,
)
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "YOLO: a .txt file of boxes for each image, in labels/ or beside it, with data.yaml or classes.txt"
LOOKED_AT = 20  # label files
TOLERANCE = 0.01  # of values beyond 0 and 1, as rounding leaves them
NO_LINE = "is a line that is no class with a box, polygon or keypoints"
OUTSIDE = "is a box outside of the image: values are fractions from 0 to 1"
NO_CLASS = "is a box of a class that has no name"
_IMAGES = re.compile(r"(.*)/images/")


class LabelLine(NamedTuple):
    """Number of the class, the box in fractions of the image, and the form of the line: box, score, polygon, pose."""

    number: int
    edges: Edges
    form: str


def matches(data: DataFiles) -> Match:
    """Match by the first lines of text files that belong to images, or by a `data.yaml` that is named itself."""
    if _named_settings(data):
        return Match.CONTENT
    files = list(_labels(data).values())
    heads = [lines for file in files[:: -(-len(files) // LOOKED_AT) or 1] if (lines := head_lines(file, 5))]
    fitting = sum(all(_numbers(line) is not None for line in lines) for lines in heads)
    return Match.CONTENT if 2 * fitting > len(heads) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the boxes of all images; those without a file, or with an empty one, have none. Raises UserError where no
    line is one of YOLO."""
    named = _named_settings(data)
    if named:
        data = DataFiles.of([folder_of(named), *(path for path in data.given if path != named)])
    images, settings = data.with_suffixes(IMAGE_SUFFIXES), settings_of(data, named)
    labels = _labels(data)
    if not labels:
        raise UserError(f"{data.given[0]} has no text file of boxes in labels/ or beside an image, as YOLO has them.")
    lists = [file for file, _ in split_lists(data)]
    others = [file for file in data.files if file.name.lower() in CLASSES or file.suffix.lower() in (".names", ".data")]
    files = [*images, *labels.values(), *([settings.source] if settings.source else [])]
    convert = partial(_convert, data, images, labels, settings, {*lists, *others})
    split_images = partial(yolo_splits, data, settings)
    return box_rows(data, data.root, "yolo", files, convert, split_images, [*_texts(data), *others])


def _named_settings(data: DataFiles) -> Path | None:
    """Return the YAML file that the user named in place of the folder, if any."""
    return next((file for file in data.given if file in data.files and is_settings(file)), None)


def _texts(data: DataFiles) -> list[Path]:
    return data.with_suffixes((".txt",))


def _labels(data: DataFiles) -> dict[Path, Path]:
    """Return the text file of each image: in `labels/` in place of the last `images/` of its path, else beside it."""
    texts = {file.as_posix(): file for file in _texts(data)}
    labels = {}
    for image in data.with_suffixes(IMAGE_SUFFIXES) if texts else ():
        beside = image.with_suffix(".txt").as_posix()
        file = texts.get(_IMAGES.sub(r"\1/labels/", f"/{beside}", count=1).removeprefix("/")) or texts.get(beside)
        if file is not None:
            labels[image] = file
    return labels


def _convert(
    data: DataFiles, images: Sequence[Path], labels: dict[Path, Path], settings: YoloSettings, others: set[Path]
) -> Conversion:
    read = BoxRecords()
    without: list[str] = []
    lines, forms = 0, dict.fromkeys(("score", "polygon", "pose"), 0)
    for image in images:
        path = place_of(image, data.root).as_posix()
        try:
            size = stored_size(image).upright
        except (UnreadableExample, OSError) as error:
            read.left_out["is an image that cannot be read"].append(f"{path} ({error})")
            continue
        try:
            written = _lines_of(labels[image]) if image in labels else []
        except OSError as error:
            read.left_out["is an image whose label file cannot be read"].append(f"{path} ({error.strerror})")
            continue
        read.boxes[path] = []
        if image not in labels:
            without.append(path)
        for place, line in enumerate(written, 1):
            if not line.strip():
                continue
            lines += 1
            read_line = _parsed(line, settings)
            if isinstance(read_line, str):
                where = place_of(labels[image], data.root).as_posix()
                read.left_out[read_line].append(f"{where}, line {place}: {line.strip()[:60]}")
                continue
            name = settings.names.get(read_line.number, str(read_line.number))
            edges = clipped(_scaled(read_line.edges, size), size)
            if edges is not None:
                read.boxes[path].append(NamedBox(name, edges))
                forms |= {read_line.form: forms.get(read_line.form, 0) + 1}
    if lines and not any(read.boxes.values()):
        reason, examples = next((pair for pair in read.left_out.items()), ("cannot be read", [str(data.root)]))
        raise UserError(f"No line of the label files can be read: {examples[0]} {reason}.")
    _count_unpaired(data, labels, others, read)
    read.notes += _notes(settings, forms, without)
    return read.conversion(list(settings.names.values()))


def _lines_of(file: Path) -> list[str]:
    return decoded(file.read_bytes().removeprefix(b"\xef\xbb\xbf")).splitlines()


def _count_unpaired(data: DataFiles, labels: dict[Path, Path], others: set[Path], read: BoxRecords) -> None:
    """Count files of boxes without an image."""
    paired = {*labels.values(), *others}
    for file in _texts(data):
        lines = head_lines(file, 1) if file not in paired else []
        if lines and _numbers(lines[0]) is not None:
            read.left_out["is a label file without an image"].append(place_of(file, data.root).as_posix())


def _notes(settings: YoloSettings, forms: dict[str, int], without: Sequence[str]) -> list[str]:
    if settings.source is None:
        notes = ["No data.yaml, classes.txt or obj.names states the names of classes; their numbers are the names."]
    else:
        notes = [f"Names of classes ({len(settings.names):,}) are those of {settings.source.name}."]
    if forms["polygon"]:
        notes.append(f"Polygons ({forms['polygon']:,}) are read as the boxes around them.")
    if forms["pose"]:
        notes.append(f"Keypoints are not read, the boxes of their objects ({forms['pose']:,}) are.")
    if forms["score"]:
        notes.append(f"A sixth value of boxes ({forms['score']:,}), such as a confidence, is not read.")
    if without:
        notes.append(f"Images without a label file ({len(without):,}) are read as background, such as {without[0]}.")
    return notes


def _numbers(line: str) -> list[float] | None:
    """Return the values of a line; None where they are no class number with four or more numbers."""
    try:
        values = [float(value) for value in line.split()]
    except ValueError:
        return None
    return values if len(values) >= 5 and values[0] >= 0 and values[0].is_integer() else None


def _parsed(line: str, settings: YoloSettings) -> LabelLine | str:
    """Return what a line says, or why it is left out."""
    values = _numbers(line)
    if values is None:
        return NO_LINE
    number, places = int(values[0]), values[1:]
    if settings.names and number not in settings.names:
        return NO_CLASS
    count = len(places)
    keypoints = count > 5 and (count == 4 + settings.keypoints if settings.keypoints else _may_be_pose(count))
    if not keypoints and count > 5:
        if count % 2 or count < 6:
            return NO_LINE
        form, edges = "polygon", (min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2]))
        within = places
    else:
        form = "pose" if keypoints else "box" if count == 4 else "score"
        x, y, width, height = within = places[:4]
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if not all(math.isfinite(value) and -TOLERANCE <= value <= 1 + TOLERANCE for value in within):
        return OUTSIDE
    if clipped(edges, (1, 1)) is None:
        return "is a box without an area in the image"
    return LabelLine(number, edges, form)


def _may_be_pose(count: int) -> bool:
    """Return whether a line without `kpt_shape` is a box with keypoints of three values: a polygon has pairs."""
    return count % 2 == 1 and (count - 4) % 3 == 0


def _scaled(edges: Edges, size: tuple[int, int]) -> Edges:
    left, top, right, bottom = edges
    return left * size[0], top * size[1], right * size[0], bottom * size[1]
