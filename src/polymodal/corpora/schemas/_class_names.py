"""Class names in columns of any heading, and classes as columns of 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_number, is_string
from polymodal.corpora.schemas._caption_columns import captions_in_several_columns
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.corpora.schemas._tabular import levels, names_a_row, numbers
from polymodal.corpora.schemas.text import LANGUAGES, USUAL, reads_as_text
from polymodal.modalities import Audio, Category, Image, Points, Video

MAX_WORDS = 4  # of a class name, such as "Black footed Albatross"
MEAN_WORDS = 2.5  # of the names of all classes
ROWS_OF_NAMES, ROWS_OF_PHRASES = 2, 4  # a class; phrases are names of several words
MEDIA = (Image, Audio, Video, Points)
# Headings of texts, whatever their values are.
_OF_TEXTS = re.compile(
    r"caption|text|titl|titel|titre|descri|beschreib|sentence|satz|prompt|comment|kommentar|transcri|report|question|"
    r"answer|frage|antwort|instruction|query|legend|leyenda|(^|[_ ])alt($|[_ ])",
    re.IGNORECASE,
)
# How phrases of a caption begin, and no class.
_ARTICLE = re.compile(r"(a|an|the|this|there|ein|eine|der|die|das|un|une|le|les|una|el|los|il)\s", re.IGNORECASE)
_PUNCTUATION = re.compile(r"[.!?,;:]")


def has_class_names(view: View, name: str) -> bool:
    """Return whether the values of a column look like class names, and not like captions that repeat: few and short,
    without articles and punctuation, each in several rows. Numbers may be classes, too."""
    if not is_string(view.type(name)):
        return True
    if any(len(value.split()) > 2 * MAX_WORDS for value in view.sample(name)):
        return False
    counts = pc.value_counts(levels(view.table.column(name)).drop_null())
    names, rows = [count["values"].as_py() for count in counts], pc.sum(counts.field("counts")).as_py() or 0
    words = [len(value.split()) for value in names]
    if len(names) < 2 or max(words) > MAX_WORDS or sum(words) > MEAN_WORDS * len(names):
        return False
    if any(_ARTICLE.match(value) or _PUNCTUATION.search(value) for value in names):
        return False
    return rows >= (ROWS_OF_PHRASES if max(words) > 1 else ROWS_OF_NAMES) * len(names)


def column_of_class_names(view: View) -> str | None:
    """Return the only free column of strings beside media, if it has class names and no heading of texts."""
    kinds = [*view.modalities.values()]
    if not any(isinstance(kind, MEDIA) for kind in kinds) or not all(isinstance(kind, MEDIA) for kind in kinds):
        return None
    usual = [name for name in view.usual(USUAL) if name.lower() != "name" and is_string(view.type(name))]
    names = [name for name in view.free if is_string(view.type(name)) and not names_a_row(name)]
    names = [name for name in names if name.lower() not in LANGUAGES and reads_as_text(view, name)]
    if usual or len(names) != 1 or _OF_TEXTS.search(names[0]) or captions_in_several_columns(view):
        return None
    return names[0] if has_class_names(view, names[0]) else None


def one_hot(view: View) -> Found | None:
    """Find columns of 0 and 1 beside media, of which each row has a single 1, as classes of a column `label`."""
    if view.whole is not None or "label" in view.table.column_names:
        return None
    if any(isinstance(kind, Category) for kind in view.modalities.values()):
        return None
    if not any(isinstance(kind, MEDIA) for kind in view.modalities.values()):
        return None
    columns = one_hot_columns(view.table, view.free)
    if not columns:
        return None
    names = tuple(name.strip() for name in columns)

    def label(table: pa.Table) -> pa.Array:
        return pa.array([names[place] for place in _stacked(table, columns).argmax(1)], pa.string())

    note = (
        f"Each row has a single 1 in the columns {', '.join(names[:4])}{' ...' * (len(names) > 4)}, which are classes."
    )
    prompts = {name: (name.replace("_", " "),) for name in names}
    return Found({"label": FoundColumn(Category(names), label)}, columns, "label", prompts, (note,))


def one_hot_columns(table: pa.Table, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the columns that have only 0 and 1, if each row has a single 1 in them, and none otherwise."""
    columns = tuple(name for name in names if _is_binary(name, table.column(name)))
    return columns if len(columns) > 1 and np.all(_stacked(table, columns).sum(1) == 1) else ()


def _is_binary(name: str, column: pa.ChunkedArray) -> bool:
    kind = column.type
    if names_a_row(name) or not (is_string(kind) or is_number(kind) or pa.types.is_boolean(kind)):
        return False
    first = column[:100].drop_null().to_pylist() if is_string(kind) else []
    if not {value.strip() for value in first} <= {"0", "1", "0.0", "1.0"}:
        return False
    values = numbers(column)
    return values.null_count == 0 and pc.all(pc.is_in(values, pa.array([0.0, 1.0]))).as_py() is True


def _stacked(table: pa.Table, columns: tuple[str, ...]) -> np.ndarray:
    return np.stack([numbers(table.column(name)).to_numpy() for name in columns], 1)
