"""COCO: a JSON file with `images` and `annotations`, which have captions or boxes, beside folders of images.

Captions, boxes and the questions of VQA v2 about an image are one row, from `captions_train2014.json`,
`instances_train2014.json` and `v2_OpenEnded_mscoco_train2014_questions.json` alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import Annotations, annotated_rows, annotation_table, chunks_of, records_of
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._json_head import first_record, json_heads
from polymodal.corpora.formats._referit import pickled_refs
from polymodal.corpora.formats._vqa import question_files, question_tables
from polymodal.corpora.formats.json import load
from polymodal.corpora.rows import Rows
from polymodal.errors import UserError
from polymodal.modalities import Expressions, Regions, Text

description = "COCO captions and instances: JSON with `images` and `annotations`, beside folders of images"
NOT_READ = ("segmentation", "keypoints", "segments_info", "counts")  # values of annotations that take much memory
OTHERS = ("person_keypoints_", "stuff_", "panoptic_", "image_info_")  # files that repeat the images of others
CAPTIONS = pa.list_(pa.string())
REFERRING = "ref"  # beginning of `dataset_name` where MDETR's caption of an image is one expression: refcoco(+/g)
CAPTIONED = ("flickr",)  # `dataset_name` where it describes the whole image


def matches(data: DataFiles) -> Match:
    """Match by the records at the beginning of JSON files."""
    return Match.CONTENT if coco_files(data) and not pickled_refs(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read the annotations of all files. Raises UserError for a file that is no COCO annotation."""
    files = coco_files(data, every=True)
    if not files:
        raise UserError(f"{data.given[0]} has no JSON file with the lists `images` and `annotations` of COCO.")
    images = ImageFiles.of(data)
    named = [file for file in files if not file.name.startswith(OTHERS)]
    annotations = Annotations({})
    annotations.notes += [f"{file.name} is not read." for file in files if named and file not in named]
    annotations.add_readable(named or files, lambda file: annotation_table("coco", [file], partial(_convert, file)))
    if any("captions" in table.column_names for table in annotations.tables):
        annotations.columns["captions"] = Text()
    if any("regions" in table.column_names for table in annotations.tables):
        annotations.columns["regions"] = Regions()
        annotations.notes.append("Boxes of objects are read; segmentation and keypoints are not.")
    if any("expressions" in table.column_names for table in annotations.tables):
        annotations.columns["expressions"] = Expressions()
    if question_files(data, every=True)[0]:
        annotations.join(question_tables(data, images))
    return annotated_rows(data, annotations, images)


def coco_files(data: DataFiles, every: bool = False) -> list[Path]:
    """Return the JSON files with annotations in the form of COCO, by their beginning. every: see `json_heads`."""
    return [file for file, head in json_heads(data, every) if _is_coco(head)]


def _is_coco(head: Any) -> bool:
    image, annotation = first_record(head, "images"), first_record(head, "annotations")
    has_image = "id" in image and _file_name(image) is not None
    has_annotation = "image_id" in annotation and bool({"caption", "bbox", "category_id"} & {*annotation})
    return (has_image and not ("annotations" in head and annotation and not has_annotation)) or has_annotation


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    for name in NOT_READ:
        record.pop(name, None)
    return record


def _convert(file: Path) -> Conversion:
    held = load(file, _slim)
    images = _images(file, held)
    annotations = records_of(file, held, "annotations")
    names = {_id(one.get("id")): str(one.get("name")) for one in records_of(file, held, "categories")}
    read = _Annotations(images, names)
    for annotation in annotations:
        read.add(annotation)
    fields: dict[str, pa.DataType] = {"file_name": pa.string()}
    if any("caption" in one for one in annotations) or any(map(_is_described, images.values())):
        fields["captions"] = CAPTIONS
    if any("caption" in image for image in images.values()):  # referring expressions with their boxes
        fields["expressions"] = Expressions().arrow_type
    elif any("bbox" in one for one in annotations):
        fields["regions"] = Regions().arrow_type
    if len(fields) == 1 and annotations:
        raise UserError(f"The annotations of {file} have neither `caption` nor `bbox`.")
    schema = pa.schema(fields)
    return Conversion(schema, chunks_of(read.rows(), schema), read.skipped(file))


def _images(file: Path, held: Any) -> dict[Any, dict[str, Any]]:
    images = {}
    for number, one in enumerate(records_of(file, held, "images")):
        name = _file_name(one)
        if "id" not in one or name is None:
            raise UserError(f"{file} is no COCO file: number {number + 1} of its images has no id and file_name.")
        images[_id(one["id"])] = one | {"file_name": name}
    if not images:
        raise UserError(f"{file} lists no images.")
    return images


def _is_described(image: Mapping[str, Any]) -> bool:
    """Return whether an image of MDETR's files has a caption of the whole of it."""
    return image.get("dataset_name") in CAPTIONED and isinstance(image.get("caption"), str)


def _spans(annotation: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the parts of the caption that name the object of a box, in MDETR's files."""
    given = annotation.get("tokens_positive")
    spans = given if isinstance(given, list) else []
    pairs = [tuple(span) for span in spans if isinstance(span, list) and len(span) == 2]
    return [span for span in pairs if all(isinstance(end, int) for end in span) and 0 <= span[0] < span[1]]


def _file_name(image: Mapping[str, Any]) -> str | None:
    """Return the file of an image; of LVIS, which names its address alone, folder and file at the end of this."""
    name = image.get("file_name")
    if name is None and isinstance(image.get("coco_url"), str):
        name = "/".join(image["coco_url"].split("/")[-2:])
    return name if isinstance(name, str) else None


def _id(value: Any) -> str:
    """Return an id as text: some files write 1 in one list and "1" in another. Raises TypeError for another value."""
    if isinstance(value, list | dict):
        raise TypeError(f"an id is {value}")
    return str(value)


@dataclass
class _Annotations:
    """Captions and boxes by image, with the numbers of what is left out."""

    images: Mapping[Any, Mapping[str, Any]]
    names: Mapping[Any, str]
    captions: dict[Any, list[str]] = field(default_factory=lambda: defaultdict(list))
    regions: dict[Any, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    spans: dict[Any, list[tuple[tuple[int, int], list[int]]]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, annotation: Mapping[str, Any]) -> None:
        image = _id(annotation.get("image_id"))
        if image not in self.images:
            self.left_out["is of an image that is not listed"].append(f"annotation {annotation.get('id')}")
        elif isinstance(annotation.get("caption"), str):
            self.captions[image].append(annotation["caption"].strip())
        elif annotation.get("iscrowd"):
            self.left_out["is a box around a crowd (iscrowd)"].append(f"annotation {annotation.get('id')}")
        elif "bbox" in annotation:
            box = ltrb(annotation["bbox"], self.images[image])
            if box is None:
                self.left_out["has a box that is not left, top, width, height in the image"].append(
                    f"annotation {annotation.get('id')}: {annotation['bbox']}"
                )
            else:
                category = _id(annotation.get("category_id"))
                self.regions[image].append({"name": self.names.get(category, category), "box": box})
                self.spans[image] += [(span, box) for span in _spans(annotation)]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each file; several images of one file, as MDETR lists them, are one."""
        by_file: dict[str, list[Any]] = defaultdict(list)
        for key, image in self.images.items():
            by_file[image["file_name"]].append(key)
        for name, keys in by_file.items():
            yield {
                "file_name": name,
                "captions": [caption for key in keys for caption in self._captions(key)] or None,
                "regions": [region for key in keys for region in self.regions.get(key, ())],
                "expressions": [expression for key in keys for expression in self._expression(key)] or None,
            }

    def _captions(self, key: Any) -> list[str]:
        described = _is_described(self.images[key])
        return [*self.captions.get(key, ()), *([self.images[key]["caption"].strip()] if described else [])]

    def _expression(self, key: Any) -> Iterator[dict[str, Any]]:
        """Yield the caption of MDETR's files with all boxes; where it is no expression, its phrases with theirs."""
        caption = self.images[key].get("caption")
        source = str(self.images[key].get("dataset_name") or REFERRING)
        if isinstance(caption, str) and not source.startswith(REFERRING):
            boxes_of: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
            for span, box in self.spans.get(key, ()):
                boxes_of[span].append(box)
            for span, of_span in sorted(boxes_of.items()):
                if phrase := caption[slice(*span)].strip():
                    yield {"text": phrase, "boxes": of_span, "clauses": 0}
        elif isinstance(caption, str) and caption.strip():
            boxes = [region["box"] for region in self.regions.get(key, ())]
            yield {"text": caption.strip(), "boxes": boxes, "clauses": 0}

    def skipped(self, file: Path) -> list[Skipped]:
        return [Skipped(len(names), reason, f"{file.name}, {names[0]}") for reason, names in self.left_out.items()]


def ltrb(bbox: Any, image: Mapping[str, Any]) -> list[int] | None:
    """Return left, top, right, bottom in whole pixels, within the image, of left, top, width, height; None for a box
    that is none."""
    if not isinstance(bbox, Sequence) or len(bbox) != 4 or not all(isinstance(edge, int | float) for edge in bbox):
        return None
    left, top, width, height = bbox
    limits = (image.get("width") or np.inf, image.get("height") or np.inf) * 2
    edges = (left, top, left + width, top + height)
    if not (width > 0 and height > 0) or not all(np.isfinite(edges)) or left >= limits[0] or top >= limits[1]:
        return None
    box = [round(min(max(edge, 0), limit)) for edge, limit in zip(edges, limits, strict=True)]
    return box if box[0] <= box[2] and box[1] <= box[3] and edges[2] > 0 and edges[3] > 0 else None
