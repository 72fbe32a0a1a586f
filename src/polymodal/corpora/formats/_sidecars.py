"""What stands beside the media files of a folder under the same name: texts, JSON, and files of other media."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats import json
from polymodal.corpora.formats._data_files import DataFiles, place_of
from polymodal.corpora.formats._delimited import decoded
from polymodal.corpora.formats._json_head import json_head
from polymodal.corpora.schemas import label, text
from polymodal.corpora.schemas.audio import AUDIO_SUFFIXES
from polymodal.errors import UserError
from polymodal.modalities import Audio, Image, Modality, Video
from polymodal.modalities.image import IMAGE_SUFFIXES
from polymodal.modalities.video import SUFFIXES as VIDEO_SUFFIXES

TEXTS = (".txt", ".caption")
LOOKED_AT = 5  # JSON files
# Lines of a class, and of the center and the size of a box, or of the corners of a polygon.
_BOXES = re.compile(r"(\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*)+", re.IGNORECASE)
# Of media with equal names, the first kind names the rows.
MEDIA: dict[str, tuple[tuple[str, ...], Callable[[Path], Modality]]] = {
    "image": (IMAGE_SUFFIXES, Image),
    "video": (VIDEO_SUFFIXES, lambda root: Video(root=root)),
    "audio": (AUDIO_SUFFIXES, lambda root: Audio(root=root)),
}
Files = dict[Path, Path]  # by path without the suffix; of JSON, by the media file


def json_beside(data: DataFiles, suffixes: Sequence[str]) -> Files:
    """Return the JSON file of each media file (`1.jpg`: `1.jpg.json` or `1.json`), if the first ones are objects with a
    caption or a class."""
    files = _by_stem(data.with_suffixes((".json",)))
    media = data.with_suffixes(suffixes) if files else []
    beside = {one: file for one in media if (file := files.get(one) or files.get(one.with_suffix("")))}
    heads = [json_head(file) for file in itertools.islice(dict.fromkeys(beside.values()), LOOKED_AT)]
    usual = {*text.USUAL, *label.USUAL}
    return beside if any(isinstance(head, dict) and usual & {*map(str.lower, head)} for head in heads) else {}


def media_beside(data: DataFiles, suffixes: Sequence[str]) -> dict[str, Files]:
    """Return the files of each other kind of media, where most of them, and half of these, have a partner."""
    others = {kind: data.with_suffixes(listed) for kind, (listed, _) in MEDIA.items() if listed != suffixes}
    stems = _by_stem(data.with_suffixes(suffixes)) if any(others.values()) else {}
    beside = {}
    for kind, files in others.items():
        paired = {stem: file for stem, file in _by_stem(files).items() if stem in stems}
        if len(paired) > len(files) / 2 and 2 * len(paired) >= len(stems):
            beside[kind] = paired
    return beside


def belong_to_others(data: DataFiles, suffixes: Sequence[str]) -> bool:
    """Return whether media files are columns beside those of an earlier kind of `MEDIA`."""
    for listed, _ in MEDIA.values():
        if listed == suffixes:
            return False
        mine = next((kind for kind, (ours, _) in MEDIA.items() if ours == suffixes), "")
        if data.with_suffixes(listed) and mine in media_beside(data, listed):
            return True
    return False


def _by_stem(files: Sequence[Path]) -> Files:
    return {file.with_suffix(""): file for file in files}


def media_columns(data: DataFiles, media: Sequence[Path], beside: Mapping[str, Files]) -> dict[str, pa.Array]:
    """Return a column of paths for each other kind of media."""
    columns = {}
    for kind, files in beside.items():
        partners = [files.get(file.with_suffix("")) for file in media]
        paths = [place_of(file, data.root).as_posix() if file else None for file in partners]
        columns[kind] = pa.array(paths, pa.string())
    return columns


def text_column(data: DataFiles, media: Sequence[Path], skipped: list[Skipped]) -> dict[str, pa.Array]:
    """Return the texts that stand beside the media; nothing where no file has one."""
    beside = _by_stem(data.with_suffixes(TEXTS))
    if not any(file.with_suffix("") in beside for file in media):
        return {}
    texts: list[str | None] = []
    for file in media:
        sidecar = beside.get(file.with_suffix(""))
        texts.append(_text_of(sidecar) if sidecar else None)
    written = [text for text in texts if text]
    if 2 * sum(_BOXES.fullmatch(text) is not None for text in written) > len(written):
        example = next(str(beside[stem]) for stem in (file.with_suffix("") for file in media) if stem in beside)
        reason = "has boxes in the form of YOLO; --format yolo reads them"
        skipped.append(Skipped(len(written), reason, example))
        return {}
    without = [file for file, text in zip(media, texts, strict=True) if not text]
    if without:
        skipped.append(Skipped(len(without), "has no text file beside it", str(without[0])))
    return {"text": pa.array(texts, pa.string())}


def _text_of(file: Path) -> str:
    """Return the text of a file in UTF-8, in UTF-16 where it says so, or else in Latin-1."""
    data = file.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace").strip()
    return decoded(data.removeprefix(b"\xef\xbb\xbf")).strip()


def json_columns(
    media: Sequence[Path], beside: Files, taken: Sequence[str], skipped: list[Skipped]
) -> dict[str, pa.ChunkedArray]:
    """Return the fields of the JSON files beside the media; one that is named like another column is `json.NAME`.

    Files that are no JSON object are skipped, counted and named. Raises UserError when all are.
    """
    if not beside:
        return {}
    records: list[dict[str, Any]] = []
    bad: list[str] = []
    without = [file for file in media if file not in beside]
    for file in media:
        sidecar = beside.get(file)
        record: Any = {}
        if sidecar is not None:
            try:
                record = json.load(sidecar)
            except (UserError, OSError) as error:
                bad.append(str(error))
            else:
                if not isinstance(record, dict):
                    bad.append(f"{sidecar} is no object")
        records.append(record if isinstance(record, dict) else {})
    if len(bad) + len(without) == len(media):
        raise UserError(f"No JSON file beside the media can be read: {bad[0]}")
    if bad:
        skipped.append(Skipped(len(bad), "is a file beside media that is no JSON object", bad[0]))
    if without:
        skipped.append(Skipped(len(without), "has no JSON file beside it", str(without[0])))
    table = json.table_of(records)
    return {f"json.{name}" if name in taken else name: table.column(name) for name in table.column_names}
