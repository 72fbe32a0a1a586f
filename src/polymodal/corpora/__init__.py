"""Real data: the built-in corpora, one file each, and `from_path` for the user's own.

A built-in corpus is a module of this folder with `about` and a function of its own name that opens it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.emoji import emoji
from polymodal.corpora.own import from_path
from polymodal.corpora.scenes import scenes
from polymodal.errors import UserError, unknown

__all__ = ["About", "Corpus", "built_in", "emoji", "from_path", "named", "open_again", "scenes"]


def built_in() -> dict[str, About]:
    """What is known of every built-in corpus, by name."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {module.about.name: module.about for module in modules if hasattr(module, "about")}


def named(name: str) -> Corpus:
    """Open a built-in corpus. Raises UserError, with the nearest name, when there is none."""
    known = built_in()
    if name not in known:
        raise unknown("corpus", name, known)
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)()


def open_again(choices: Mapping[str, Any]) -> Corpus:
    """The corpus that a run was trained on, from what its record says."""
    if "data" in choices:
        return from_path(choices["data"], choices.get("image"), choices.get("text"))
    if "corpus" in choices:
        return named(choices["corpus"])
    raise UserError("This run does not say which corpus it was trained on; name one with --corpus or --data.")
