"""Pascal VOC (Everingham et al. 2010): `Annotations/NAME.xml` with boxes, `JPEGImages/`, `ImageSets/Main/train.txt`.

Roboflow, labelImg and CVAT write such files beside the images, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.formats import flickr30k
from polymodal.corpora.formats._boxes import BoxRecords, Edges, NamedBox, StoredSize, box_rows, clipped, stored_size
from polymodal.corpora.formats._data_files import SPLIT_NAMES, DataFiles, Match, place_of, splits_of
from polymodal.corpora.formats._delimited import lines_of
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._xml import XmlElement, read_xml
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

description = "Pascal VOC: an XML file of boxes for each image, in Annotations/ or beside it"
LOOKED_AT = 20  # XML files
HEAD = 1 << 12  # bytes that are looked at
EDGES = ("xmin", "ymin", "xmax", "ymax")
_ROOT = re.compile(rb"<annotation[\s>]")
_PART = re.compile(rb"<(object|size|filename|folder)[\s/>]")
SUFFIXES = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))


class StatedObject(NamedTuple):
    """An object as its file states it: xmin, ymin, xmax, ymax."""

    name: str
    edges: Edges
    is_difficult: bool


class StatedImage(NamedTuple):
    """An image that a file describes. size: width and height that are stated; (0, 0) where they are not."""

    file: Path
    path: str
    size: tuple[int, int]
    objects: list[StatedObject]


def matches(data: DataFiles) -> Match:
    """Match by the beginning of XML files beside images; those of Flickr30k Entities have another meaning."""
    files = data.with_suffixes((".xml",))
    if not any(_is_annotation(file) for file in files[:: -(-len(files) // LOOKED_AT) or 1]):
        return Match.NO
    return Match.NO if flickr30k.matches(data) is not Match.NO else Match.CONTENT


def read(data: DataFiles) -> Rows:
    """Read the boxes of all XML files whose image is there. Raises UserError where there is none."""
    files = data.with_suffixes((".xml",))
    if not files:
        raise UserError(f"{data.given[0]} has no XML file of annotations, as Pascal VOC has them.")
    images = ImageFiles.of(data)
    lists = [file for file in data.with_suffixes((".txt",)) if _is_list(file)]
    there = data.with_suffixes(IMAGE_SUFFIXES)
    convert = partial(_convert, files, images, there)
    return box_rows(data, images.root, "voc", [*files, *there], convert, partial(_splits, lists, images.root), lists)


def _is_annotation(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return False
    return _ROOT.search(head) is not None and _PART.search(head) is not None


def _is_list(file: Path) -> bool:
    """Return whether a file is `train.txt`, `val.txt`, `test.txt` or `trainval.txt` of a folder `Main`."""
    return file.parent.name == "Main" and (file.stem in SPLIT_NAMES or file.stem == "trainval")


def _splits(lists: Sequence[Path], root: Path, paths: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the split of each image by the lists of `ImageSets/Main` of its data set, else by folders."""
    splits: dict[tuple[str, str], str] = {}
    for file in sorted(lists, key=lambda file: file.stem == "trainval"):  # the other lists say more
        around = place_of(file.parent.parent.parent / "x", root).parent.as_posix()
        for line in lines_of(file):
            if line.strip():
                split = "train" if file.stem == "trainval" else SPLIT_NAMES[file.stem]
                for name in {line.strip(), line.split()[0]}:  # a name may have blanks, or a number behind it
                    splits.setdefault((around, _without_suffix(name)), split)
    stated = splits_of([root / path for path in paths], root) if not splits else None
    if stated is not None:
        return [stated[root / path] for path in paths], []
    of_images = [splits.get((_around(path), path.rpartition("/")[2].rpartition(".")[0])) for path in paths]
    return of_images, ["Splits are those of ImageSets/Main."] if any(of_images) else []


def _without_suffix(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(IMAGE_SUFFIXES) else name


def _around(path: str) -> str:
    """Return the folder of the data set of an image in `JPEGImages/`."""
    return Path(path).parent.parent.as_posix()


def _convert(files: Sequence[Path], images: ImageFiles, there: Sequence[Path]) -> Conversion:
    read = BoxRecords()
    stated = list(_stated_images(files, images, read))
    zero_based = next((one for one in stated for each in one.objects if min(each.edges[:2]) < 1), None)
    difficult = 0
    for one in stated:
        try:
            size = stored_size(images.root / one.path)
        except (UnreadableExample, OSError) as error:
            read.left_out["is an image that cannot be read"].append(f"{one.path} ({error})")
            continue
        read.boxes[one.path] = []
        for each in one.objects:
            edges = _upright(each.edges, one.size, size, 0 if zero_based else 1)
            if edges is None:
                listed = ", ".join(f"{edge:g}" for edge in each.edges)
                read.left_out["is a box without an area in the image"].append(f"{one.file.name}: {listed}")
                continue
            difficult += each.is_difficult
            read.boxes[one.path].append(NamedBox(each.name, edges))
    if zero_based:
        read.notes.append(f"Boxes begin at 0, as in {zero_based.file.name}, so pixels are counted from 0, not from 1.")
    if difficult:
        read.notes.append(f"Objects that are marked difficult ({difficult:,}) are read like all others.")
    places = {place_of(file, images.root).as_posix() for file in there}
    folders = {path.rpartition("/")[0] for path in read.boxes}  # others may have masks
    described = {one.path for one in stated}
    if without := sorted(path for path in places - described if path.rpartition("/")[0] in folders):
        read.notes.append(f"Images that no XML file describes ({len(without):,}) are not read, such as {without[0]}.")
    if stated and not read.boxes:
        raise UserError(f"No image in {images.root} can be read: {stated[0].path}.")
    return read.conversion(())


def _upright(edges: Edges, stated: tuple[int, int], size: StoredSize, first: int) -> Edges | None:
    """Return a box in the upright image.

    first: number of the first pixel. With 1, pixels xmin to xmax are the edges xmin - 1 to xmax. A box of an image that
    is turned by its orientation flag is of the stored image where the stated size is that of the stored image alone.
    """
    left, top, right, bottom = edges
    shifted = (left - first, top - first, right, bottom)
    plain = (size.width, size.height)
    if stated == plain and plain != size.upright:
        shifted = size.turned(shifted)
    return clipped(shifted, size.upright)


def _stated_images(files: Sequence[Path], images: ImageFiles, read: BoxRecords) -> Iterator[StatedImage]:
    """Yield the images that are there. Raises UserError where no file is an annotation, and where no image is there."""
    errors: list[UserError] = []
    paths: set[str] = set()
    missing: list[str] = []
    for file in files:
        try:
            root = read_xml(file)
        except UserError as error:
            errors.append(error)
            read.left_out["is a file that cannot be read"].append(str(error))
            continue
        if root.tag != "annotation":
            read.left_out["is an XML file of another form"].append(file.name)
            continue
        name = _text(root, "filename")
        path = _path(images, file, name)
        if path is None:
            missing.append(name or file.name)
            read.left_out[f"names an image that is not in {images.root}"].append(name or file.name)
        elif path in paths:
            read.left_out["is a second file of an image"].append(file.name)
        else:
            paths.add(path)
            yield StatedImage(file, path, _size(root), list(_objects(root, file, read)))
    if errors and not paths and not missing:
        raise errors[0]
    if missing and not paths:
        raise UserError(
            f"{files[0]} and others name images such as {missing[0]}, and none of them is in {images.root}; put them "
            "there, or name the folder that has both with --data FOLDER."
        )


def _path(images: ImageFiles, file: Path, name: str) -> str | None:
    """Return the image of a file: of the same name, as in `JPEGImages/`, else the one that `filename` names."""
    same = [name] if Path(name).stem == file.stem and "/" not in name else []
    names = [*same, *(f"{file.stem}{suffix}" for suffix in SUFFIXES), *([name] if name else [])]
    path = images.find_any(names, file)
    return None if path is not None and "/Segmentation" in f"/{path}" else path  # masks of the same name


def _size(root: XmlElement) -> tuple[int, int]:
    size = root.find("size")
    values = [_text(size, name) for name in ("width", "height")] if size is not None else []
    return (int(values[0]), int(values[1])) if len(values) == 2 and all(map(str.isdecimal, values)) else (0, 0)


def _objects(root: XmlElement, file: Path, read: BoxRecords) -> Iterator[StatedObject]:
    """Yield the objects of an image; their parts, such as heads and hands, are none."""
    for one in root.findall("object"):
        name, box = _text(one, "name"), one.find("bndbox")
        edges = _edges(box) if box is not None else None
        if not name or edges is None:
            read.left_out["is an object without a name and a box of four numbers"].append(f"{file.name}: {name}")
        else:
            yield StatedObject(name, edges, _text(one, "difficult") == "1")


def _edges(box: XmlElement) -> Edges | None:
    try:
        left, top, right, bottom = (float(_text(box, name)) for name in EDGES)
    except ValueError:
        return None
    return (left, top, right, bottom) if all(map(math.isfinite, (left, top, right, bottom))) else None


def _text(element: Any, name: str) -> str:
    return (element.findtext(name) or "").strip()
