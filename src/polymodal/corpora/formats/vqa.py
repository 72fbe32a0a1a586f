"""VQA v2 and sets in its form (VQA v1, OK-VQA): files of `questions` and of `annotations` with ten answers for each
question, beside the images of COCO. With captions or boxes of COCO beside them, they are read by `coco`.
"""

from __future__ import annotations

from polymodal.corpora.formats._annotated import annotated_rows
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._vqa import question_files, question_tables
from polymodal.corpora.formats.coco import coco_files
from polymodal.corpora.rows import Rows

description = "VQA v2: JSON files of `questions` and of `annotations` with answers, beside the images"


def matches(data: DataFiles) -> Match:
    """Match by the records at the beginning of JSON files."""
    return Match.CONTENT if question_files(data)[0] and not coco_files(data) else Match.NO


def read(data: DataFiles) -> Rows:
    """Read questions with their answers, a row an image. Raises UserError where a file of either kind is missing."""
    images = ImageFiles.of(data)
    return annotated_rows(data, question_tables(data, images), images)
