"""Captions in several columns: numbered (`caption_0` to `caption_4`), or by language (`caption_en`, `caption_de`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from polymodal.corpora._types import is_string
from polymodal.corpora.schemas._schema import Found, FoundColumn, View
from polymodal.modalities import Text
from polymodal.modalities.text import UNKNOWN_LANGUAGE

STEMS = ("caption", "captions", "text", "title", "sentence", "description", "raw", "alt_text")
# ISO 639-1, without those that are also words of column names: id, no, or, to
_CODES = """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en
    eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd
    ne ng nl nn nr nv ny oc oj om os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st
    su sv sw ta te tg th ti tk tl tn tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
LANGUAGES = frozenset(_CODES.split())
_MEMBER = re.compile(rf"({'|'.join(STEMS)})(?:[_.-]?(\d{{1,3}})|[_.-]([a-z]{{2}})(?:[_-][a-z]{{2,4}})?)", re.IGNORECASE)


def captions_in_several_columns(view: View) -> Found | None:
    """Find two columns or more of strings that are numbered, or named by languages, alike."""
    families: dict[tuple[str, bool], list[tuple[int, str, str]]] = {}
    for name in view.free:
        match = _MEMBER.fullmatch(name)
        if match is None or not is_string(view.type(name)):
            continue
        stem, number, language = match[1].lower(), match[2], (match[3] or "").lower()
        if number is not None or language in LANGUAGES:
            family = families.setdefault((stem, number is not None), [])
            family.append((int(number or len(family)), name, language or UNKNOWN_LANGUAGE))
    for (stem, numbered), family in families.items():
        if len(family) > 1:
            columns = [name for _, name, _ in sorted(family)]
            languages = [] if numbered else [language for _, _, language in sorted(family)]
            base = [name for name in view.free if name.lower() == stem and is_string(view.type(name))]
            columns, languages = base + columns, [UNKNOWN_LANGUAGE] * len(base) + languages if languages else []
            convert = partial(_lists, columns, languages)
            return Found({base[0] if base else stem: FoundColumn(Text(), convert)}, tuple(columns))
    return None


def _lists(names: Sequence[str], languages: Sequence[str], table: pa.Table) -> pa.Array:
    """Return the captions of each row that are there; with languages, as `{"text", "language"}` records."""
    texts = [pc.cast(table.column(name), pa.string()).combine_chunks() for name in names]
    there = np.stack([pc.fill_null(pc.greater(pc.utf8_length(text), 0), False).to_numpy(False) for text in texts], 1)
    # Row after row: the captions of one row stand together.
    rows, columns = np.nonzero(there)
    every = pa.concat_arrays(texts).take(pa.array(columns * len(table) + rows))
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(1))]), pa.int32())
    values = every
    if languages:
        of_each = pa.array(np.array(languages, object)[columns], pa.string())
        values = pa.StructArray.from_arrays([every, of_each], ["text", "language"])
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(~there.any(1)))
