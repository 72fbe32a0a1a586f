"""Images in numbered columns, `image_1` to `image_7`, with a question that names them: `<image 1>` (MMMU).

Rows with one image at most have an image and a question; where a row has several, or may have, as in a stream, all are
conversations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_string
from polymodal.corpora.schemas._columns import joined, records
from polymodal.corpora.schemas._image_lists import holds_images, media_root, note_of
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas.questions import CHOICES, is_choices, with_choices
from polymodal.modalities import Conversations, Image
from polymodal.modalities.conversation import PLACEHOLDER

rank = 0
option = ""
NAME, IMAGE = "conversations", "image"
_NUMBERED = re.compile(r"(?:image|img)[_-]?(\d{1,2})", re.IGNORECASE)
_PLACE = re.compile(r"<(?:image|img)[ _-]?(\d{1,2})>", re.IGNORECASE)


def find(view: View) -> Found | None:
    """Find two numbered columns or more, of which all that are not empty hold images, and the question about them."""
    numbered = {int(match[1]): name for name in view.free if (match := _NUMBERED.fullmatch(name))}
    names = [numbered[number] for number in sorted(numbered)]
    filled = [name for name in names if not pa.types.is_null(view.type(name)) and any(view.sample(name))]
    if len(names) < 2 or not filled or not all(holds_images(view, name) for name in filled):
        return None
    if view.whole is not None:  # of a stream, in which other rows may have more images than those of the sample
        filled = [name for name in names if view.type(name) == view.type(filled[0])]
    if len({view.type(name) for name in filled}) > 1 or IMAGE in view.table.column_names:
        return None
    counts = sum(_there(view.table.column(name)).to_numpy().astype(int) for name in filled)
    root = media_root(view, filled[0])
    notes = note_of(view, filled[0], root)
    if counts.max() <= 1 and (view.whole is None or len(filled) == 1):
        return Found({IMAGE: FoundColumn(Image(root), partial(_only, filled))}, tuple(names), notes=notes)
    question = next((name for name in view.usual(("question", "query")) if is_string(view.type(name))), None)
    answer = next((name for name in view.usual(("answer", "response")) if is_string(view.type(name))), None)
    if question is None or answer is None or NAME in view.table.column_names:
        return None
    choices = next((name for name in view.usual(CHOICES) if is_choices(view, name)), None)
    uses = (*filled, question, answer, *((choices,) if choices else ()))
    numbers = [number for number in sorted(numbered) if numbered[number] in filled]

    def make(columns: Mapping[str, pa.Array]) -> pa.Array:
        questions, answers = columns[question], columns[answer]
        if choices is not None:
            questions, answers = with_choices(questions, answers, columns[choices], False)
        shown = np.stack([_there(columns[name]).to_numpy(zero_copy_only=False) for name in filled], 1)
        rows = [
            _row(text, reply, [number for number, one in zip(numbers, has, strict=True) if one])
            for text, reply, has in zip(questions.to_pylist(), answers.to_pylist(), shown.tolist(), strict=True)
        ]
        every, size = pa.concat_arrays([columns[name] for name in filled]), len(questions)
        places = [numbers.index(number) * size + row for row, (_, used) in enumerate(rows) for number in used]
        ends = np.cumsum([0, *(len(used) for _, used in rows)])
        images = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), every.take(pa.array(places, pa.int64())))
        messages = pa.array([turns for turns, _ in rows], Conversations().arrow_type.field("messages").type)
        return records({"messages": messages, "images": images}, messages.is_null())

    column = FoundColumn(Conversations(root), lambda table: joined(table, uses, make))
    return Found({NAME: column}, (*names, question, answer, *((choices,) if choices else ())), notes=notes)


def _there(images: pa.Array | pa.ChunkedArray) -> Any:
    """Return where there is an image: no missing value, and no empty path."""
    return pc.fill_null(pc.not_equal(images, ""), False) if is_string(images.type) else images.is_valid()


def _only(names: Sequence[str], table: pa.Table) -> pa.ChunkedArray:
    """Return the image of each row."""
    columns = [table.column(name) for name in names]
    return pc.coalesce(*(pc.if_else(_there(column), column, None) for column in columns))


def _row(
    question: str | None, answer: str | None, numbers: Sequence[int]
) -> tuple[list[dict[str, Any]] | None, list[int]]:
    """Return the messages of a row, and the numbers of its images in the order of their places."""
    if not question or not answer:
        return None, []
    named = [int(number) for number in _PLACE.findall(question)]
    used = [number for number in named if number in numbers]
    unnamed = [number for number in numbers if number not in used]  # in front of the question
    text = _PLACE.sub(lambda place: PLACEHOLDER if int(place[1]) in numbers else "", question)
    content = PLACEHOLDER * len(unnamed) * bool(used) + text
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], [*unnamed, *used]
