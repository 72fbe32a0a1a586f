"""Words of pages: texts (`words`, `tokens`) beside `bboxes`, and entity tags, as LayoutLM's data sets on the hub have
them; lines of receipts as CORD has them; or lists of words with their boxes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_list, is_number, is_string
from polymodal.corpora.formats._cord_lines import receipt_words
from polymodal.corpora.formats._page_words import PageWord, field_names, scaled_word
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.errors import UnreadableExample
from polymodal.modalities import Image, Words
from polymodal.modalities.document import BOX_SCALE, OTHER

rank = 2
option = ""
TEXTS = ("words", "tokens", "word", "token")
BOXES = ("bboxes", "boxes", "bbox", "word_boxes", "word_bboxes", "normalized_bboxes")
TAGS = ("ner_tags", "tags", "word_labels", "labels", "label", "ner", "fields")
PAGES = 20  # whose sizes are compared with their boxes
LARGE = 1250  # pixels of a page's longer side from which boxes in pixels would exceed `BOX_SCALE` on some page

ReadWords = Callable[[Mapping[str, Any]], "list[dict[str, Any]] | None"]


def find(view: View) -> Found | None:
    """Find words beside an image."""
    image = next((name for name, kind in view.modalities.items() if isinstance(kind, Image)), None)
    if image is None or any(isinstance(kind, Words) for kind in view.modalities.values()):
        return None
    return _records(view) or _lists(view, image) or _receipts(view)


def _words(
    view: View,
    uses: Sequence[str],
    read: ReadWords,
    needs: Sequence[str] = (),
    note: str = "",
    fields: Sequence[str] | None = None,
) -> Found:
    """Return the column `words`. uses: columns that hold the words. needs: others that are read. fields: entity types;
    None to read all words for them."""
    names = [*uses, *needs]

    def convert(table: pa.Table) -> pa.ChunkedArray:
        chunks = [
            pa.array([read(row) for row in batch.to_pylist()], Words().arrow_type)
            for batch in table.select(names).to_batches(max_chunksize=256)
        ]
        return pa.chunked_array(chunks, Words().arrow_type)

    if fields is None:
        fields = field_names(convert(view.table))
    notes = (note,) if note else ()
    return Found({"words": FoundColumn(Words(tuple(fields)), convert)}, tuple(uses), notes=notes)


def _records(view: View) -> Found | None:
    """Find a list of words as they are stored by this library."""
    for name in view.free:
        if is_list(view.type(name)) and fields_of(view.type(name)) >= {"text", "box", "field", "segment", "link"}:
            return Found({name: FoundColumn(Words(field_names(view.table.column(name))))}, (name,))
    return None


def _lists(view: View, image: str) -> Found | None:
    texts = [name for name in view.usual(TEXTS) if _is_list_of(view.type(name), is_string)]
    boxes = [
        name for name in view.usual(BOXES) if _is_list_of(view.type(name), lambda kind: _is_list_of(kind, is_number))
    ]
    if not texts or not boxes:
        return None
    tags = [
        name
        for name in view.usual(TAGS)
        if _is_list_of(view.type(name), lambda kind: is_number(kind) or is_string(kind))
    ]
    uses = [texts[0], boxes[0], *tags[:1]]
    names = _tag_names(view.table.schema, tags[0]) if tags else None
    scale, reason = _scale(view, image, boxes[0])
    modality = view.modalities[image]

    def read(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        words, places = row[texts[0]], row[boxes[0]]
        given = (row[tags[0]] if tags else None) or [None] * len(words or ())
        if words is None or places is None or not len(words) == len(places) == len(given):
            return None
        size = (scale, scale) if scale else _size(modality, row[image])
        pairs = zip(words, places, given, strict=True)
        page = [PageWord(text, box, _field(tag, names)) for text, box, tag in pairs if text and box and len(box) == 4]
        return None if size is None else [scaled_word(word, size) for word in page]

    units = {None: "pixels of the page", 1.0: "fractions of the page", float(BOX_SCALE): "thousandths of the page"}[
        scale
    ]
    note = f"Boxes of the column '{boxes[0]}' are read as {units}, {reason}."
    return _words(view, uses, read, (image,), note, _tag_fields(view, tags[0], names) if tags else (OTHER,))


def _tag_fields(view: View, tags: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the entity types of all tags, `other` first, without reading any words or images."""
    tagged = pc.unique(pc.list_flatten(view.table.column(tags))).to_pylist()
    return (OTHER, *sorted({_field(tag, names) for tag in tagged} - {OTHER}))


def _receipts(view: View) -> Found | None:
    """Find lines of CORD in JSON, in a column `ground_truth`."""
    for name in view.usual(("ground_truth",)):
        if is_string(view.type(name)) and any('"valid_line"' in text for text in view.texts(name)[:5]):

            def read(row: Mapping[str, Any], name: str = name) -> list[dict[str, Any]] | None:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    words, size = receipt_words(json.loads(row[name]))
                    return None if size is None else [scaled_word(word, size) for word in words]
                return None

            return _words(view, (name,), read)
    return None


def _is_list_of(kind: pa.DataType, fits: Callable[[pa.DataType], bool]) -> bool:
    return is_list(kind) and fits(kind.value_type)


def _tag_names(schema: pa.Schema, name: str) -> list[str] | None:
    """Return the names of integer tags that `datasets` keeps in the metadata of a table."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        return list(inner["names"])
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _field(tag: Any, names: Sequence[str] | None) -> str:
    """Return the entity type of a tag, without the prefixes of BIO and BIOES; 0 without names is none."""
    if tag is None:
        return OTHER
    if isinstance(tag, int | float) and names is not None and 0 <= int(tag) < len(names):
        tag = names[int(tag)]
    text = str(tag)
    if text in ("O", "o", "0", ""):
        return OTHER
    return text[2:] if text[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") else text


def _scale(view: View, image: str, name: str) -> tuple[float | None, str]:
    """Return what boxes are parts of, None for pixels of the page, and why. See `PAGES`."""
    column = view.table.column(name)
    edges = pc.list_flatten(pc.list_flatten(column))
    largest = pc.max(edges).as_py() or 0
    if largest <= 1:
        return 1.0, "as none exceeds 1"
    if largest > BOX_SCALE:
        return None, f"as some exceed {BOX_SCALE}"
    rows = view.table.select([image, name]).slice(0, PAGES).to_pylist()
    sizes = [(_size(view.modalities[image], row[image]), row[name] or []) for row in rows]
    measured = [(size, boxes) for size, boxes in sizes if size is not None]
    for (width, height), boxes in measured:
        if any(len(box) == 4 and (box[2] > width or box[3] > height) for box in boxes):
            return float(BOX_SCALE), "as some reach out of the page in pixels"
    if measured and max(max(size) for size, _ in measured) > LARGE:
        return float(BOX_SCALE), f"as none exceeds {BOX_SCALE} on pages of more pixels"
    return (None, "as all are within the page") if measured else (float(BOX_SCALE), f"as none exceeds {BOX_SCALE}")


def _size(modality: Any, value: Any) -> tuple[float, float] | None:
    with contextlib.suppress(UnreadableExample):
        width, height = modality.decode(value).size
        return width, height
    return None
