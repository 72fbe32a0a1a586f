"""Files of `questions` and of `annotations` with ten answers for each question, as VQA v2 publishes them."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import Annotations, annotation_table, chunks_of, records_of
from polymodal.corpora.formats._data_files import DataFiles
from polymodal.corpora.formats._image_files import ImageFiles
from polymodal.corpora.formats._json_head import first_record, json_heads
from polymodal.corpora.formats.json import load
from polymodal.errors import UserError
from polymodal.modalities import Questions

QUESTION = pa.struct(
    {
        "question": pa.string(),
        "answer": pa.string(),
        "kind": pa.string(),
        "rationale": pa.string(),
        "answers": pa.list_(pa.string()),
    }
)
SCHEMA = pa.schema({"file_name": pa.string(), "questions": pa.list_(QUESTION)})
# File names of an image of COCO: of 2014, of 2017, and as other sets name theirs. All are looked for.
NAMES = (
    "COCO_{subset}_{number:0>12}.jpg",
    "COCO_train2014_{number:0>12}.jpg",
    "COCO_val2014_{number:0>12}.jpg",
    "{number:0>12}.jpg",
    "{number}.jpg",
    "{number}.png",
    "{number}",
)


def question_tables(data: DataFiles, images: ImageFiles) -> Annotations:
    """Return the questions of all files that have answers, with the files. Raises UserError where none has."""
    question_paths, answer_paths = question_files(data, every=True)
    if not question_paths:
        raise UserError(f"{data.given[0]} has no JSON file with the list `questions` of VQA v2.")
    annotations = Annotations({"questions": Questions()})
    for questions, answers in _paired(data, question_paths, answer_paths, images):
        files = [questions, answers]
        table, left_out = annotation_table("vqa", files, partial(_convert, *files))
        annotations.add(questions, _with_images(table, images, questions), left_out)
    annotations.notes += [
        f"{file.name} is not read: it has no annotations." for file in question_paths if file not in annotations.files
    ]
    return annotations


def question_files(data: DataFiles, every: bool = False) -> tuple[list[Path], list[Path]]:
    """Return the files of questions, and those of annotations; both empty where one kind of file is given alone and is
    of another form. every: see `json_heads`."""
    question_paths, answer_paths = [], []
    for file, head in json_heads(data, every):
        if {"question_id", "question", "image_id"} <= {*first_record(head, "questions")}:
            question_paths.append(file)
        elif {"question_id", "answers", "image_id"} <= {*first_record(head, "annotations")}:
            answer_paths.append(file)
    return question_paths, answer_paths


def _key(file: Path) -> str:
    """Return what the names of the two files of a subset have in common, such as `train2014`."""
    name = file.name.lower().removesuffix(".gz").removesuffix(".json")
    for word in ("v2", "openended", "multiplechoice", "questions", "annotations", "mscoco", "_", "-"):
        name = name.replace(word, "")
    return name


def _likeness(file: Path, other: Path) -> tuple[bool, bool]:
    """Return whether two files are of one version, and in one folder."""
    of_v2 = [one.name.lower().startswith("v2") for one in (file, other)]
    return of_v2[0] == of_v2[1], file.parent == other.parent


def _paired(
    data: DataFiles, question_paths: list[Path], answer_paths: list[Path], images: ImageFiles
) -> list[tuple[Path, Path]]:
    """Return files of questions with their annotations; of a file that is named alone, from its folder and the one
    around it."""
    if not answer_paths:
        beside = DataFiles.of([images.root])
        answer_paths = question_files(beside, every=True)[1]
    pairs = []
    for file in question_paths:
        of_subset = [other for other in answer_paths if _key(other) == _key(file)]
        if of_subset:  # VQA v1 and OK-VQA call theirs as v2 does, but for its prefix
            pairs.append((file, max(of_subset, key=functools.partial(_likeness, file))))
    if not pairs and len(question_paths) == len(answer_paths) == 1:
        pairs = [(question_paths[0], answer_paths[0])]
    if not pairs:
        raise UserError(
            f"{question_paths[0]} has questions, and no file has their answers; put {_expected(question_paths[0])} "
            "beside it."
        )
    return pairs


def _expected(file: Path) -> str:
    name = file.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
    return name.replace("questions", "annotations") if "questions" in name else "the file of `annotations`"


def _slim(record: dict[str, Any]) -> Any:
    """Keep of the record of an answer its text alone: there are millions of them."""
    return record["answer"] if {"answer", "answer_id"} <= {*record} else record


def _convert(questions: Path, annotations: Path) -> Conversion:
    held = load(questions)
    records = records_of(questions, held, "questions")
    subset = str(held.get("data_subtype") or "")
    answers = {one.get("question_id"): one for one in records_of(annotations, load(annotations, _slim), "annotations")}
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    without: list[Any] = []
    for question in records:
        if not isinstance(question.get("question"), str) or "image_id" not in question:
            raise UserError(f"{questions} has a question without `question` and `image_id`: {str(question)[:80]}.")
        stored = _stored(question["question"], answers.get(question.get("question_id"), {}))
        if stored is None:
            without.append(question.get("question_id"))
        else:
            by_image[question["image_id"]].append(stored)
    if not by_image:
        raise UserError(f"{annotations} has no answer to the questions of {questions}.")
    skipped = (
        [Skipped(len(without), "is a question without answers", f"{questions.name}, {without[0]}")] if without else []
    )
    rows = ({"file_name": f"{subset}/{image}", "questions": stored} for image, stored in by_image.items())
    return Conversion(SCHEMA, chunks_of(rows, SCHEMA), skipped)


def _stored(question: str, annotation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a question; None where it has no answer."""
    given = annotation.get("answers") or []
    texts = [one.get("answer", "") if isinstance(one, dict) else one for one in given]
    answers = [text for text in texts if isinstance(text, str) and text]
    if not answers:
        return None
    usual = annotation.get("multiple_choice_answer") or Counter(answers).most_common(1)[0][0]
    kind = annotation.get("answer_type") or annotation.get("question_type") or ""
    return {"question": question, "answer": usual, "kind": kind, "rationale": "", "answers": answers}


def _with_images(table: pa.Table, images: ImageFiles, file: Path) -> pa.Table:
    """Replace subset and number of each image by the name that its file has, else by the first usual one."""
    names = []
    for place in table.column("file_name").to_pylist():
        subset, _, number = place.partition("/")
        usual = [name.format(subset=subset, number=number) for name in NAMES]
        names.append(images.find_any(usual, file) or usual[0])
    return table.set_column(0, "file_name", pa.array(names, pa.string()))
