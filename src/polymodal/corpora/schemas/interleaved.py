"""Interleaved documents: OBELICS (`texts` and `images` of one length, of which one is missing at each place) and MMC4
(`text_list`, and `image_info` with the text that each image stands before)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import fields_of, is_binary, is_list, is_string
from polymodal.corpora.schemas._columns import field, joined, records
from polymodal.corpora.schemas._image_lists import media_root, note_of
from polymodal.corpora.schemas._media import is_url
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.errors import UserError
from polymodal.modalities import Interleaved

rank = 0
option = ""
NAME = "document"
MATCHED = {"image_name", "matched_text_index"}


def find(view: View) -> Found | None:
    """Find the two columns of such documents. Raises UserError where images are addresses in the web."""
    obelics, mmc4 = view.usual(("texts", "images")), view.usual(("text_list", "image_info"))
    if len(obelics) == 2 and _is_list_of(view, obelics[0], is_string) and _is_list_of(view, obelics[1], _is_image):
        texts, images = obelics
        root, make = media_root(view, images), _of_places
        _check_addresses(view, images)
    elif len(mmc4) == 2 and _is_list_of(view, mmc4[0], is_string) and fields_of(view.type(mmc4[1])) >= MATCHED:
        (texts, images), make = mmc4, _of_matches
        names = pa.table(
            {images: [one["image_name"] for some in view.sample(images) for one in some if one is not None]}
        )
        root = media_root(View(names, view.root, ()), images)
    else:
        return None

    def document(columns: Mapping[str, pa.Array]) -> pa.Array:
        return make(columns[texts], columns[images])

    return Found(
        {NAME: FoundColumn(Interleaved(root), lambda table: joined(table, (texts, images), document))},
        (texts, images),
        notes=note_of(view, images, root),
    )


def _is_list_of(view: View, name: str, is_kind: Callable[[pa.DataType], bool]) -> bool:
    kind = view.type(name)
    return is_list(kind) and is_kind(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
    return is_string(kind) or is_binary(kind) or fields_of(kind) >= {"bytes", "path"}


def _check_addresses(view: View, images: str) -> None:
    some = [one for row in view.sample(images) for one in row if one is not None]
    if some and all(isinstance(one, str) and is_url(one) for one in some):
        raise UserError(
            f"The column '{images}' has addresses of images in the web, such as {some[0]}; download them, and write "
            "their bytes or the paths of their files into it."
        )


def _of_places(texts: pa.Array, images: pa.Array) -> pa.Array:
    """Return one piece for each place, without a copy. A row with lists of two lengths is missing."""
    lengths = [pc.fill_null(pc.list_value_length(one), -1).to_numpy(zero_copy_only=False) for one in (texts, images)]
    fits = (lengths[0] == lengths[1]) & (lengths[0] >= 0)
    if not fits.all():
        texts, images = (one.filter(pa.array(fits)) for one in (texts, images))
    flat_texts, flat_images = texts.flatten(), images.flatten()
    return _documents(flat_texts, flat_images, np.where(fits, lengths[0], 0), ~fits)


def _of_matches(texts: pa.Array, images: pa.Array) -> pa.Array:
    """Return the texts with each image before the one that it matches. A row with an image of no text is missing."""
    counts = pc.fill_null(pc.list_value_length(texts), 0).to_numpy(zero_copy_only=False)
    text_row = np.repeat(np.arange(len(texts)), counts)
    image_row = pc.list_parent_indices(images).to_numpy()
    infos = images.flatten()
    place = pc.fill_null(field(infos, "matched_text_index"), -1).to_numpy(zero_copy_only=False)
    missing = texts.is_null().to_numpy(zero_copy_only=False)
    missing[image_row[(place < 0) | (place >= counts[image_row])]] = True
    text_place = np.arange(len(text_row)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.concatenate([image_row, text_row])
    order = np.lexsort((np.arange(len(rows)), np.concatenate([place, text_place]), rows))  # images come first
    order = order[~missing[rows[order]]]
    is_text = order >= len(image_row)
    flat_texts = texts.flatten().take(pa.array(order - len(image_row), pa.int64(), mask=~is_text))
    flat_images = field(infos, "image_name").take(pa.array(order, pa.int64(), mask=is_text))
    return _documents(flat_texts, flat_images, np.bincount(rows[order], minlength=len(texts)), missing)


def _documents(texts: pa.Array, images: pa.Array, lengths: np.ndarray, missing: np.ndarray) -> pa.Array:
    kinds = pc.if_else(images.is_valid(), "figure", "paragraph")
    pieces = records({"kind": kinds, "text": texts, "figure": images}, pa.array(np.zeros(len(texts), bool)))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32(), mask=np.append(missing, False)), pieces)
