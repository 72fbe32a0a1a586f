"""Data sets of the Hugging Face hub: `hf:OWNER/NAME[:CONFIG][@REVISION]`, or `hf:FOLDER` in the hub's layout."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from polymodal.corpora._tables_in_memory import rows_of
from polymodal.corpora.corpus import About, Corpus
from polymodal.corpora.stream import from_shards
from polymodal.corpora.user_files import corpus_of, first_line
from polymodal.errors import UserError

_FORM = re.compile(r"hf:(?P<name>[^:@]+)(?::(?P<config>[^@:]+))?(?:@(?P<revision>[^@]+))?")
HUB = "hf://datasets/"
PARQUET = "refs%2Fconvert%2Fparquet"  # the revision in which the hub keeps every data set as Parquet, by config


class HubName(NamedTuple):
    """name: OWNER/NAME, NAME, or a folder. config: of several data sets in one. revision: a branch, tag or commit."""

    name: str
    config: str | None = None
    revision: str | None = None


def is_hub(given: str) -> bool:
    """Return whether a path is the name of a data set of the hub; `hf://` URLs are those of a file system."""
    return given.startswith("hf:") and not given.startswith("hf://")


def parse_name(given: str) -> HubName:
    """Parse `hf:OWNER/NAME[:CONFIG][@REVISION]`. Raises UserError for other forms."""
    match = _FORM.fullmatch(given)
    if match is None or (match["name"].count("/") > 1 and not os.path.isdir(os.path.expanduser(match["name"]))):
        raise UserError(
            f"'{given}' names no data set of the hub; write hf:OWNER/NAME, :CONFIG and @REVISION if needed."
        )
    return HubName(match["name"], match["config"], match["revision"])


def from_hub(given: str, stream: bool, columns: dict[str, str]) -> Corpus:
    """Open a data set of the hub: downloaded once by `datasets`, or streamed.

    Its splits are kept; of one that has `train` only, the rows are split by content. Raises UserError for an unknown
    name, config or revision, or no network.
    """
    wanted = parse_name(given)
    folder = os.path.expanduser(wanted.name)
    choices = {"data": given, "columns": dict(columns)}
    if stream:
        revision = wanted.revision or PARQUET
        url = folder if os.path.isdir(folder) else f"{HUB}{wanted.name}@{revision}"
        if not (os.path.isdir(folder) or wanted.config or wanted.revision):
            url = _only_config(url, wanted.name)
        corpus = from_shards(f"{url}/{wanted.config}" if wanted.config else url, **columns)
        return replace(corpus, choices=choices | {"stream": True})
    parts = _load(wanted, folder if os.path.isdir(folder) else wanted.name)
    rows = rows_of(parts, Path(folder).resolve() if os.path.isdir(folder) else Path())
    name = wanted.name.rstrip("/").rpartition("/")[2]
    about = About(name, f"{rows.table.num_rows:,} examples of {given}", "see the data set's card", given, ())
    return corpus_of(rows, about, columns, choices)


def _only_config(url: str, name: str) -> str:
    """Return the folder of the config of a data set that has one. Raises UserError where it has several."""
    try:
        system, root = fsspec.core.url_to_fs(url)
        configs = sorted(one["name"].rpartition("/")[2] for one in system.ls(root) if one["type"] == "directory")
    except Exception:  # of the network, which `from_shards` tells of
        return url
    if len(configs) > 1:
        raise UserError(f"hf:{name} needs a config; choose one of: {', '.join(configs[:20])}, as in hf:{name}:CONFIG.")
    return f"{url}/{configs[0]}" if configs else url


def _load(wanted: HubName, place: str) -> Any:
    import datasets

    logger = logging.getLogger("huggingface_hub")  # without a network, it tells of every attempt
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(place, wanted.config, revision=wanted.revision)
    except Exception as error:  # of the network, the hub, and the readers of all formats
        message = " ".join(str(error).split()) or type(error).__name__
        if "config" in message.lower():
            raise UserError(f"hf:{wanted.name} needs a config, hf:{wanted.name}:CONFIG: {message[:300]}") from error
        raise UserError(
            f"hf:{wanted.name} cannot be loaded: {first_line(error)[:300].rstrip('.')}. Check the name, and the "
            "network; a folder of its files is read with --data FOLDER."
        ) from error
    finally:
        logger.setLevel(level)
