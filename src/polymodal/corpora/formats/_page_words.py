"""Pages whose words stand in files beside images: words with boxes in thousandths of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from polymodal.corpora._arrow_cache import Conversion, cached_table
from polymodal.corpora._layout import stored_word
from polymodal.corpora.corpus import Skipped
from polymodal.corpora.formats._annotated import chunks_of
from polymodal.corpora.formats._data_files import DataFiles, splits_of
from polymodal.corpora.formats._image_files import ImageFiles, missing_images
from polymodal.corpora.rows import Rows
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image, Modality, Words
from polymodal.modalities.document import NO_LINK, NO_SEGMENT, OTHER
from polymodal.modalities.image import IMAGE_SUFFIXES

SCHEMA = pa.schema({"image": pa.string(), "file": pa.string(), "words": Words().arrow_type})


class PageWord(NamedTuple):
    """A word with its box in pixels: left, top, right, bottom. See `Word`."""

    text: str
    box: Sequence[float]
    field: str = OTHER
    segment: int = NO_SEGMENT
    link: int = NO_LINK


class FilePage(NamedTuple):
    """A page that a file describes. names: those that its image may have. size: width and height that boxes are pixels
    of, where it is not that of the image."""

    words: list[PageWord]
    names: tuple[str, ...] = ()
    size: tuple[float, float] | None = None


ReadPages = Callable[[Path], Sequence[FilePage]]  # raises UserError or ValueError for a file that is damaged


def page_rows(data: DataFiles, kind: str, files: Sequence[Path], read: ReadPages) -> Rows:
    """Return a row for each page of the files that has words and an image: the one it names, else one of the name of
    the file. kind: of the copy in the cache.

    Raises UserError where no page has both.
    """
    images = ImageFiles.of(data)
    paths = [images.find_any(_names(file), file) for file in files]
    watched = [images.root / path for path in paths if path is not None]
    convert = _PageConversion(images, files, read)
    table, skipped = cached_table(kind, [*files, *watched], convert)
    if table.num_rows == 0:
        raise UserError(f"No page of {data.given[0]} has words and an image. {'; '.join(map(_said, skipped))}")
    stated = splits_of(files, data.root)
    by_name = {str(file): split for file, split in stated.items()} if stated is not None else {}
    split = np.array([by_name[name] for name in table.column("file").to_pylist()], dtype=object) if by_name else None
    fields = Words(field_names(table.column("words")))
    table = table.drop_columns(["file"])
    states = split is not None and "train" in split and len({*split}) > 1
    columns: dict[str, Modality] = {"image": Image(images.root), "words": fields}
    return Rows(table, images.root, columns, split if states else None, keys="image", skipped=skipped)


def field_names(words: pa.ChunkedArray) -> tuple[str, ...]:
    """Return the fields of words, `other` first."""
    import pyarrow.compute as pc

    fields = pc.unique(pc.struct_field(pc.list_flatten(words), "field")).drop_null().to_pylist()
    return (OTHER, *sorted({*fields} - {OTHER}))


def scaled_word(word: PageWord, size: tuple[float, float]) -> dict[str, Any]:
    """Return the storage of a word; its box is cut at the edges of the page. size: of the page, in pixels."""
    left, top, right, bottom = word.box
    box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    return stored_word(word.text, box, size, word.field, word.segment, word.link)


class _PageConversion:
    """Reads all files, page by page."""

    def __init__(self, images: ImageFiles, files: Sequence[Path], read: ReadPages):
        self.images, self.files, self.read = images, files, read
        self.skipped: list[Skipped] = []

    def __call__(self) -> Conversion:
        return Conversion(SCHEMA, chunks_of(self._records(), SCHEMA), self.skipped)

    def _records(self) -> Iterator[dict[str, Any]]:
        damaged: list[str] = []
        empty: list[str] = []
        missing: list[str] = []
        later: list[str] = []
        total = 0
        for file in self.files:
            try:
                pages = self.read(file)
            except (UserError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
                damaged.append(f"{file.name}: {error}")
                continue
            shown: set[str] = set()
            for page in pages:
                total += 1
                path = self.images.find_any((*page.names, *(_names(file) if len(pages) == 1 else ())), file)
                if not page.words:
                    empty.append(file.name)
                elif path is None:
                    missing.append(page.names[0] if page.names else f"{file.stem}.png")
                elif path in shown:
                    later.append(f"{file.name}: {path}")
                else:
                    shown.add(path)
                    yield from self._record(file, path, page, damaged)
        if missing:
            self.skipped += missing_images(len(missing), total, missing[0], self.images, self.files[0])
        for names, reason in (
            (damaged, "cannot be read"),
            (empty, "has no words"),
            (later, "is a later page of an image file, of which only the first page is read"),
        ):
            if names:
                self.skipped.append(Skipped(len(names), reason, names[0]))

    def _record(self, file: Path, path: str, page: FilePage, damaged: list[str]) -> Iterator[dict[str, Any]]:
        try:
            size = page.size or Image(self.images.root).decode(path).size
            words = [scaled_word(word, size) for word in page.words]
            pa.scalar(words, Words().arrow_type)
        except (UnreadableExample, ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
            damaged.append(f"{file.name}: {error}")
            return
        yield {"image": path, "file": str(file), "words": words}


def _names(file: Path) -> list[str]:
    return [f"{file.stem}{suffix}" for suffix in IMAGE_SUFFIXES]


def _said(skipped: Skipped) -> str:
    return f"{skipped.count:,}: {skipped.reason} ({skipped.example})"
