"""Real data: the built-in corpora, one file each, and `from_path` for the user's own.

A built-in corpus is a module of this folder with `about` and a function of its own name that opens it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from polymodal.corpora._cache import is_prepared, prepared_size
from polymodal.corpora.brains import brains
from polymodal.corpora.cells import cells
from polymodal.corpora.charts import charts
from polymodal.corpora.clips import clips
from polymodal.corpora.corpus import About, Corpus, Part
from polymodal.corpora.counting import counting
from polymodal.corpora.digits import digits
from polymodal.corpora.documents import documents
from polymodal.corpora.driving import driving
from polymodal.corpora.emoji import emoji
from polymodal.corpora.functions import functions
from polymodal.corpora.furniture import furniture
from polymodal.corpora.furniture_views import furniture_views
from polymodal.corpora.glosses import glosses
from polymodal.corpora.languages import in_languages, with_language_temperature
from polymodal.corpora.manuals import manuals
from polymodal.corpora.mixture import mix
from polymodal.corpora.molecules import molecules
from polymodal.corpora.movies import movies
from polymodal.corpora.own import from_path
from polymodal.corpora.pages import pages
from polymodal.corpora.referring import referring
from polymodal.corpora.reports import reports
from polymodal.corpora.scenes import scenes
from polymodal.corpora.series import series
from polymodal.corpora.solar_cells import solar_cells
from polymodal.corpora.speech import speech
from polymodal.corpora.stamps import stamps
from polymodal.corpora.stream import MissingData, from_shards
from polymodal.corpora.viewers import viewers
from polymodal.corpora.web_tasks import web_tasks
from polymodal.corpora.worlds import worlds
from polymodal.errors import UserError, unknown

__all__ = [
    "About",
    "Corpus",
    "MissingData",
    "Part",
    "brains",
    "built_in",
    "cells",
    "charts",
    "clips",
    "counting",
    "digits",
    "documents",
    "driving",
    "emoji",
    "from_path",
    "from_shards",
    "functions",
    "furniture",
    "furniture_views",
    "glosses",
    "in_languages",
    "manuals",
    "mix",
    "molecules",
    "movies",
    "named",
    "named_mixture",
    "open_again",
    "pages",
    "referring",
    "reports",
    "scenes",
    "series",
    "solar_cells",
    "speech",
    "stamps",
    "state",
    "viewers",
    "web_tasks",
    "with_language_temperature",
    "worlds",
]


def built_in() -> dict[str, About]:
    """What is known of every built-in corpus, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {module.about.name: module.about for module in modules if hasattr(module, "about")}


def state(name: str) -> dict[str, Any]:
    """What scripts want to know of a built-in corpus; what needs its data is None while it is not in the cache."""
    about = built_in()[name]
    corpus = named(name) if is_prepared(about.folder) else None
    return {
        "name": name,
        "state": "prepared" if corpus else "not fetched",
        "description": about.description,
        "modalities": about.modalities,
        "licence": about.licence,
        "source": about.source,
        "composed": about.composed,
        "download_bytes": about.download_bytes,
        "bytes": prepared_size(name),
        "examples": len(corpus) if corpus else None,
        "splits": {split: len(rows) for split, rows in corpus.splits.items()} if corpus else None,
        "columns": {name: type(kind).__name__.lower() for name, kind in corpus.columns.items()} if corpus else None,
    }


def named(name: str) -> Corpus:
    """Open a built-in corpus. Raises UserError, with the nearest name, when there is none."""
    known = built_in()
    if name not in known:
        raise unknown("corpus", name, known)
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)()


def named_mixture(text: str, every_column: bool = False) -> Corpus:
    """'emoji', or a mixture with weights such as 'emoji:3,scenes:1'. Raises UserError for any other form.

    every_column: see `mix`.
    """
    parts = []
    for part in text.split(","):
        name, colon, weight = part.strip().partition(":")
        try:
            share = float(weight) if colon else 1.0
        except ValueError:
            share = 0.0
        if share <= 0:
            raise UserError(f"'{part}' is no part of a mixture; write for example emoji:3,scenes:1.")
        parts.append((named(name), share))
    return parts[0][0] if len(parts) == 1 else mix(parts, every_column=every_column)


def open_again(choices: Mapping[str, Any]) -> Corpus:
    """The corpus that a run was trained on, from what its record says."""
    changes: dict[str, Callable[[Corpus, Any], Corpus]] = {  # the last that was made first
        "language_temperature": with_language_temperature,
        "languages": in_languages,
    }
    for choice, change in changes.items():
        if choice in choices:
            others = {name: value for name, value in choices.items() if name != choice}
            return change(open_again(others), choices[choice])
    if "parts" in choices:
        parts = [(open_again(part), weight) for part, weight in choices["parts"]]
        return mix(parts, every_column=choices.get("every_column", False))
    if choices.get("stream"):
        return from_shards(choices["data"], choices.get("image"), choices.get("text"))
    if "data" in choices:
        return from_path(choices["data"], choices.get("image"), choices.get("text"))
    if "corpus" in choices:
        return named(choices["corpus"])
    raise UserError("This run does not say which corpus it was trained on; name one with --corpus or --data.")
