"""Registry of built-in corpora: the list is the folder itself; a corpus is imported when it is opened.

A built-in corpus is a module of this folder with `about` and a function of its own name that opens it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.corpora._cache import is_prepared, prepared_size
from polymodal.corpora.about import About, names
from polymodal.errors import UserError, unknown

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


def built_in() -> dict[str, About]:
    """Return the metadata of every built-in corpus, by name; read from the files, without importing them."""
    return {name: source.find(f"{__package__}.{name}", "about") for name in names()}


def state(name: str) -> dict[str, Any]:
    """Return the state of a built-in corpus for scripts; values that need its data are None while it is not cached."""
    about = built_in()[name]
    corpus = load_corpus(name) if is_prepared(about.folder) else None
    return {
        "name": name,
        "state": "prepared" if corpus else "not fetched",
        "description": about.description,
        "modalities": about.modalities,
        "licence": about.license,
        "source": about.source,
        "composed": about.composed,
        "download_bytes": about.download_bytes,
        "bytes": prepared_size(name),
        "examples": len(corpus) if corpus else None,
        "splits": {split: len(rows) for split, rows in corpus.splits.items()} if corpus else None,
        "columns": {name: type(kind).__name__.lower() for name, kind in corpus.columns.items()} if corpus else None,
    }


def load_corpus(name: str) -> Corpus:
    """Open a built-in corpus. Raises UserError, with the nearest name, when there is none."""
    _check(name)
    return getattr(importlib.import_module(f"{__package__}.{name}"), name)()


def _check(name: str) -> None:
    if name in names():
        return
    if name and Path(name).exists():
        raise UserError(f"There is no built-in corpus '{name}', but a file or folder; give it as --data {name}.")
    raise unknown("corpus", name, names())


def load_mixture(text: str, every_column: bool = False) -> Corpus:
    """Open a corpus such as 'emoji', or a weighted mixture such as 'emoji:3,scenes:1'. Raises UserError for other
    forms.

    every_column: see `mix`.
    """
    parts = [(load_corpus(name), weight) for name, weight in parts_of_mixture(text)]
    if len(parts) == 1:
        return parts[0][0]
    from polymodal.corpora.mixture import mix_corpora

    return mix_corpora(parts, every_column=every_column)


def parts_of_mixture(text: str) -> list[tuple[str, float]]:
    """Parse names and weights of a mixture. Raises UserError for another form, or an unknown corpus."""
    parts = []
    for part in text.split(","):
        name, colon, weight = part.strip().partition(":")
        try:
            share = float(weight) if colon else 1.0
        except ValueError:
            share = 0.0
        if share <= 0:
            raise UserError(f"'{part}' is no part of a mixture; write for example emoji:3,scenes:1.")
        _check(name)
        parts.append((name, share))
    return parts


def reopen(choices: Mapping[str, Any]) -> Corpus:
    """Reopen the corpus that a run was trained on, from the run's record."""
    from polymodal.corpora.languages import in_languages, with_language_temperature
    from polymodal.corpora.mixture import mix_corpora
    from polymodal.corpora.sources import from_path

    changes: dict[str, Callable[[Corpus, Any], Corpus]] = {  # the last that was made first
        "language_temperature": with_language_temperature,
        "languages": in_languages,
    }
    for choice, change in changes.items():
        if choice in choices:
            others = {name: value for name, value in choices.items() if name != choice}
            return change(reopen(others), choices[choice])
    if "parts" in choices:
        parts = [(reopen(part), weight) for part, weight in choices["parts"]]
        return mix_corpora(parts, every_column=choices.get("every_column", False))
    columns = choices.get("columns", {})
    if "in_memory" in choices:
        raise UserError(
            f"This run was trained on '{choices['in_memory']}', a table in memory, which is not there any more; name "
            "the data with --data."
        )
    if "data" in choices:
        stream = choices.get("stream", False)
        return from_path(choices["data"], choices.get("format"), stream=stream, **columns)
    if "corpus" in choices:
        return load_corpus(choices["corpus"])
    raise UserError("This run does not say which corpus it was trained on; name one with --corpus or --data.")
