"""Built-in corpora (datasets), one file each, and `from_path` for the user's own data.

Everything here is imported on first use, so that listings and help import no corpus. Inside the package, modules import
from the modules of this folder.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from polymodal.corpora.about import names

if TYPE_CHECKING:
    from polymodal.corpora.about import About
    from polymodal.corpora.brains import brains
    from polymodal.corpora.cells import cells
    from polymodal.corpora.charts import charts
    from polymodal.corpora.clips import clips
    from polymodal.corpora.coding_posts import coding_posts
    from polymodal.corpora.corpus import Corpus, Part
    from polymodal.corpora.counting import counting
    from polymodal.corpora.digits import digits
    from polymodal.corpora.documents import documents
    from polymodal.corpora.driving import driving
    from polymodal.corpora.emoji import emoji
    from polymodal.corpora.emoji_activities import emoji_activities
    from polymodal.corpora.emoji_cultures import emoji_cultures
    from polymodal.corpora.emoji_keywords import emoji_keywords
    from polymodal.corpora.emoji_pages import emoji_pages
    from polymodal.corpora.emoji_records import emoji_records
    from polymodal.corpora.emoji_vendors import emoji_vendors
    from polymodal.corpora.firm_names import firm_names
    from polymodal.corpora.function_posts import function_posts
    from polymodal.corpora.functions import functions
    from polymodal.corpora.furniture import furniture
    from polymodal.corpora.furniture_views import furniture_views
    from polymodal.corpora.glosses import glosses
    from polymodal.corpora.in_memory import from_table
    from polymodal.corpora.languages import in_languages, with_language_temperature
    from polymodal.corpora.manuals import manuals
    from polymodal.corpora.minimal_pairs import minimal_pairs
    from polymodal.corpora.mixture import mix_corpora
    from polymodal.corpora.molecules import molecules
    from polymodal.corpora.movies import movies
    from polymodal.corpora.named_objects import named_objects
    from polymodal.corpora.pages import pages
    from polymodal.corpora.rated_images import rated_images
    from polymodal.corpora.referring import referring
    from polymodal.corpora.registry import built_in, load_corpus, load_mixture, reopen, state
    from polymodal.corpora.reports import reports
    from polymodal.corpora.scenes import scenes
    from polymodal.corpora.series import series
    from polymodal.corpora.solar_cells import solar_cells
    from polymodal.corpora.sources import from_path, open_data
    from polymodal.corpora.speech import speech
    from polymodal.corpora.stamps import stamps
    from polymodal.corpora.stream import MissingData, from_shards
    from polymodal.corpora.studies import studies
    from polymodal.corpora.viewers import viewers
    from polymodal.corpora.web_tasks import web_tasks
    from polymodal.corpora.worlds import worlds
    from polymodal.corpora.zipf_emoji import zipf_emoji

_MODULES = {  # attribute -> module; a built-in corpus is in the module of its own name
    "About": "about",
    "Corpus": "corpus",
    "MissingData": "stream",
    "Part": "corpus",
    "built_in": "registry",
    "from_path": "sources",
    "from_shards": "stream",
    "from_table": "in_memory",
    "in_languages": "languages",
    "mix_corpora": "mixture",
    "open_data": "sources",
    "load_corpus": "registry",
    "load_mixture": "registry",
    "reopen": "registry",
    "state": "registry",
    "with_language_temperature": "languages",
}

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
    "coding_posts",
    "counting",
    "digits",
    "documents",
    "driving",
    "emoji",
    "emoji_activities",
    "emoji_cultures",
    "emoji_keywords",
    "emoji_pages",
    "emoji_records",
    "emoji_vendors",
    "firm_names",
    "from_path",
    "from_shards",
    "from_table",
    "function_posts",
    "functions",
    "furniture",
    "furniture_views",
    "glosses",
    "in_languages",
    "load_corpus",
    "load_mixture",
    "manuals",
    "minimal_pairs",
    "mix_corpora",
    "molecules",
    "movies",
    "named_objects",
    "open_data",
    "pages",
    "rated_images",
    "referring",
    "reopen",
    "reports",
    "scenes",
    "series",
    "solar_cells",
    "speech",
    "stamps",
    "state",
    "studies",
    "viewers",
    "web_tasks",
    "with_language_temperature",
    "worlds",
    "zipf_emoji",
]


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name, name if name in names() else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Module type of this package, so that `emoji` stays the function: importing the submodule of that name would
    replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in names():
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
