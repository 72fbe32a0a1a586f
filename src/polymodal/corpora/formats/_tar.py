"""Members of webdataset's tar files: which make up an example, and which column each is.

Consecutive members of one name, up to the first dot, are an example. Files are read whole (`webdataset`) or where they
lie (`stream`), by the same rules.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._data_files import is_accompanying
from polymodal.errors import UserError
from polymodal.modalities.image import IMAGE_SUFFIXES

TEXTS = ("txt", "text", "caption")
LABELS = ("cls",)  # read with the table of members, so that all classes are known
MAX_DOTTED = 8  # kinds of members with a dot, until they are looked at

Members = dict[str, Any]  # suffix -> [offset, size] of its content; the text of `LABELS`
TarExample = tuple[str, Members]


@dataclass
class TarIndex:
    """Table of members of a tar file. damage: what is wrong after the last whole example, if anything is."""

    examples: list[TarExample] = field(default_factory=list)
    damage: str = ""

    def damage_report(self, name: str) -> tuple[Skipped, ...]:
        """Return what was left out of the file of this name."""
        reason = f"is damaged after {len(self.examples):,} whole examples; what follows is not read"
        return (Skipped(1, reason, f"{name}: {self.damage}"),) if self.damage else ()


def index_tar(file: BinaryIO, name: str, look: Callable[[str, str, bytes], None] | None = None) -> TarIndex:
    """List the examples of a tar file. Of a damaged one, those in front of the damage.

    look: called with key, suffix and content of each `.json` member.

    Raises UserError for a file that is none, or without a whole example, an example that has a member twice or whose
    members are in two places, and names with dots that belong to the name.
    """
    index, keys = TarIndex(), set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all of them otherwise
                named = key_and_suffix(member.name) if member.isfile() else None
                if named is None:
                    continue
                key, suffix = named
                if not index.examples or index.examples[-1][0] != key:
                    if key in keys:
                        raise UserError(
                            f"{name} has members of '{key}' in two places; make names unique, and write the members "
                            "of an example one after the other (tar --sort=name)."
                        )
                    keys.add(key)
                    index.examples.append((key, {}))
                if suffix in index.examples[-1][1]:
                    raise UserError(f"{name} has the member '{key}.{suffix}' twice; make its names unique.")
                place: Any = [member.offset_data, member.size]
                if suffix in LABELS:
                    place = _text(tar.extractfile(member).read())  # type: ignore[union-attr]
                elif look is not None and is_small(suffix):
                    look(key, suffix, tar.extractfile(member).read())  # type: ignore[union-attr]
                index.examples[-1][1][suffix] = place
            index.damage = _damage_at(file, tar.offset)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        index.damage = str(error) or type(error).__name__
    if index.damage:
        index.examples = index.examples[:-1]  # it may lack members
        if not index.examples:
            raise UserError(f"{name} cannot be read as webdataset: {index.damage}.")
    _check_dots(index.examples, name)
    return index


def _damage_at(file: BinaryIO, offset: int) -> str:
    """Return what is wrong where the members end: tarfile takes anything that is no header for the end."""
    if isinstance(file, gzip.GzipFile):  # it has checksums of its own
        return ""
    file.seek(offset)
    return "" if not any(file.read(512)) else f"there is no member at byte {offset:,}"


def key_and_suffix(member: str) -> tuple[str, str] | None:
    """Split the name of a member at the first dot after its folder; None for those that are no data: hidden ones, those
    of macOS (`._name`), documentation and names without a suffix."""
    path = PurePosixPath(member)
    stem, _, suffix = path.name.partition(".")
    if not stem or not suffix or is_accompanying(path.name) or "__MACOSX" in path.parts:
        return None
    return str(path.parent / stem), suffix.lower()


def _check_dots(examples: list[TarExample], name: str) -> None:
    """Raise UserError where members have suffixes of their own: parts of names that contain dots."""
    dotted = Counter(suffix for _, members in examples for suffix in members if "." in suffix)
    few = len(examples) < 3 or sum(dotted.values()) < 0.5 * len(dotted) * len(examples)
    if len(dotted) > MAX_DOTTED and few:
        key, members = next((key, members) for key, members in examples if any("." in one for one in members))
        suffix = next(one for one in members if "." in one)
        raise UserError(
            f"Names in {name} have a dot that does not begin the suffix, such as '{key}.{suffix}'; webdataset takes "
            f"'{key}' for the name and '{suffix}' for the kind of the member. Replace such dots, for example by '_'."
        )


def columns_of(examples: Iterable[TarExample]) -> dict[str, str]:
    """Return the column of each suffix: `image` for those of images, `text` for captions, `label` for classes; suffixes
    that occur together in an example are columns of their own."""
    kinds = {frozenset(members) for _, members in examples}
    columns = {suffix: suffix for kind in kinds for suffix in sorted(kind)}
    images = {suffix for suffix in columns if f".{suffix}" in IMAGE_SUFFIXES}
    for column, suffixes in (("image", images), ("text", {*TEXTS}), ("label", {*LABELS})):
        if all(len(kind & suffixes) <= 1 for kind in kinds):
            columns |= {suffix: column for suffix in columns if suffix in suffixes}
    return columns


def values_of(key: str, members: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row of an example from the contents of its members, by suffix.

    Fields of a `.json` member are columns of their own; a field that is named like a member is `json.NAME`.
    """
    row: dict[str, Any] = {"__key__": key}
    taken = {*columns.values()}
    for suffix, content in members.items():
        kind = suffix.rpartition(".")[2]
        if suffix in LABELS:
            row[columns[suffix]] = content
        elif kind in TEXTS:
            row[columns[suffix]] = _text(content)
        elif kind == "json":
            try:
                record = json.loads(content)
            except (ValueError, RecursionError):
                continue
            if suffix == "json" and isinstance(record, dict):
                row |= {f"json.{name}" if name in taken else name: value for name, value in record.items()}
            else:
                row[columns[suffix]] = record if isinstance(record, dict) else json.dumps(record, ensure_ascii=False)
        else:
            row[columns[suffix]] = content
    return row


def is_small(suffix: str) -> bool:
    """Return whether the type of a column is only known by the contents of its members: of JSON."""
    return suffix.rpartition(".")[2] == "json"


def lacking(examples: Iterable[TarExample], columns: Mapping[str, str], name: str) -> tuple[Skipped, ...]:
    """Return how many examples lack the image, or the text, that most have."""
    without: dict[str, list[str]] = {"image": [], "text": []}
    total = 0
    for key, members in examples:
        total += 1
        has = {columns[suffix] for suffix in members}
        for column, keys in without.items():
            if column not in has:
                keys.append(key)
    return tuple(
        Skipped(len(keys), f"has no {column}", f"{name}: {keys[0]}")
        for column, keys in without.items()
        if 0 < len(keys) < total / 2
    )


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace").strip()
