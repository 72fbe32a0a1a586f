"""Vector index: a run's embeddings with keys, captions, thumbnails and metadata, in LanceDB.

An index mirrors its data: building again embeds new and changed examples, and removes deleted ones. Chunks are written
atomically, so that a stopped build resumes. An index is in a folder, or at any URL that LanceDB opens.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image as PILImage

from polymodal.corpora.contact_sheet import has_images, image_of
from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UnreadableExample, UserError, needs, unusable
from polymodal.evaluation.task import available_modalities, item_of
from polymodal.modalities import Image, Table, Text, Video
from polymodal.modalities.image import encoded, open_image, to_rgb
from polymodal.serving.embedding import vectors_of
from polymodal.training.feature_cache import weights_key
from polymodal.training.run import Run, load_run
from polymodal.types import Example

TABLE, ABOUT = "examples", b"polymodal"
CHUNK = 512  # examples per embedded and written chunk
THUMBNAIL = 160  # pixels of the longer side
ANN_FROM = 50_000  # number of examples from which approximate nearest neighbor search is faster than exact search
RESERVED_COLUMNS = ("key", "split", "caption", "text", "vector", "thumbnail", "digest")

Report = Callable[[int, int], None]  # rows done, total


@dataclass(frozen=True)
class Origin:
    """Provenance of an index. run: its folder. weights: their digest. item: embedded modality."""

    run: str
    weights: str
    item: str
    data: Mapping[str, Any]


class Built(NamedTuple):
    """Numbers of added, changed, removed and unchanged examples; skipped: key -> reason."""

    added: int
    changed: int
    removed: int
    kept: int
    skipped: dict[str, str]


class Hit(NamedTuple):
    """Search result. similarity: cosine, from -1 to 1. thumbnail: JPEG, if the example has an image."""

    key: str
    similarity: float
    caption: str
    split: str | None
    metadata: dict[str, Any]
    thumbnail: bytes | None

    @property
    def image(self) -> PILImage.Image | None:
        """The decoded thumbnail."""
        return None if self.thumbnail is None else open_image(self.thumbnail)

    def record(self, thumbnail: bool = False) -> dict[str, Any]:
        """Return a JSON record. thumbnail: include the thumbnail in base64."""
        shown = base64.b64encode(self.thumbnail).decode() if thumbnail and self.thumbnail is not None else None
        return self._asdict() | {"thumbnail": shown}


def is_index(place: str) -> bool:
    """Return whether a folder holds an index; URLs are assumed to."""
    return "://" in place or (Path(place) / f"{TABLE}.lance").is_dir()


def build_index(run: Run, corpus: Corpus, place: str, report: Report = lambda done, total: None) -> Built:
    """Build or update the index of a corpus.

    Raises UserError for a run that embeds nothing of the corpus, an index of other weights or other data, and a place
    that cannot be written.
    """
    asked = available_modalities(corpus, run.processor)
    item = item_of(asked) or ("text" if Text in asked else None)
    if item is None:
        raise UserError(f"The run '{run.name}' embeds nothing that '{corpus.name}' has.")
    if run.directory is None:
        raise UserError("An index needs a run that is kept in a folder; train it with out=...")
    about = Origin(str(run.directory.resolve()), weights_key(run.model), item, dict(corpus.choices))
    table = _opened(place) if _is_there(place) else None
    if table is not None:
        _check_same(_about(table), about, place)
    known, source = {} if table is None else _digests(table), _Source(corpus)
    reader, added, changed = Reader(corpus, run.processor, memory=0), 0, 0
    digests = ((row, source.digest(row)) for row in range(len(corpus)))
    pending = ((row, digest) for row, digest in digests if known.get(source.keys[row]) != digest)
    gone = known.keys() - {*source.keys}
    while some := dict(itertools.islice(pending, CHUNK)):
        rows, examples = reader.read_all(np.array(list(some)))
        unreadable = some.keys() - {*rows.tolist()}
        gone |= known.keys() & {source.keys[row] for row in unreadable}
        if examples:
            made = source.table(rows, examples, [some[row] for row in rows.tolist()], vectors_of(run, item, examples))
            old = sum(source.keys[row] in known for row in rows)
            table = _write(place, table, made, about, replacing=old > 0)
            changed, added = changed + old, added + len(rows) - old
        report(max(some) + 1, len(corpus))
    if table is None:
        raise UserError(f"No example of '{corpus.name}' can be read, so there is no index.")
    with _saying(f"The index {place} cannot be brought up to date"):
        _remove(table, sorted(gone))
        if added or changed or gone:
            _arrange(table)
    return Built(added, changed, len(gone), len(known) - changed - len(gone), reader.skipped)


class Index:
    """An existing index for searching. Raises UserError when there is none."""

    def __init__(self, place: str):
        if not is_index(place):
            raise UserError(f"{place} is no index; make one with: polymodal index RUN --data PATH --out {place}.")
        self.place = place
        self.table = _opened(place)
        self.about = _about(self.table)
        self.columns = {field.name: field.type for field in self.table.schema if field.name not in RESERVED_COLUMNS[2:]}
        self.filters = list(self.columns)

    def __len__(self) -> int:
        return self.table.count_rows()

    def run(self, place: str | None = None, trust_code: bool = False) -> Run:
        """Load the run that built the index, for embedding queries.

        place: its folder, if it was moved. trust_code: see `load_run`; an index may name anybody's run. Raises
        UserError for a run with other weights, whose embeddings are incompatible.
        """
        run = load_run(place or self.about.run, trust_code)
        self.check(run)
        return run

    def check(self, run: Run) -> None:
        """Raise UserError for a run with other weights."""
        if weights_key(run.model) != self.about.weights:
            raise UserError(
                f"The index {self.place} was made with other weights than those of {run.directory}; "
                "index the data again."
            )

    def find(
        self,
        query: Float[np.ndarray, " dim"],
        count: int = 10,
        where: str | None = None,
        words: str | None = None,
        seconds: float | None = None,
    ) -> list[Hit]:
        """Return the examples most similar to a normalized vector, best first (top-k).

        where: SQL condition on keys, splits and metadata, passed to the engine as it is (for untrusted conditions see
        `serving.filters`). words: full-text query on captions; both rankings are combined by reciprocal rank fusion
        (RRF). seconds: timeout, checked between batches of rows. Raises UserError for an invalid condition, and
        TimeoutError.
        """
        begin, timeout = time.monotonic(), None if seconds is None else timedelta(seconds=max(seconds, 1e-3))
        if count < 1:
            raise UserError("--top is at least 1.")
        if words is None:
            search = self.nearest(self.table, query, count)
        else:
            from lancedb.rerankers import RRFReranker

            search = self.table.search(query_type="hybrid", vector_column_name="vector").vector(query).text(words)
            search = search.distance_type("cosine").limit(max(RRF_K * count, 100)).rerank(RRFReranker())
        if where is not None:
            search = search.where(where)
        try:
            rows = search.to_arrow(timeout=timeout).to_pylist()
        except (ValueError, RuntimeError) as error:
            if seconds is not None and time.monotonic() - begin >= seconds:
                raise TimeoutError from error
            known = ", ".join(self.filters)
            raise UserError(
                f"The search failed: {_said(error)}; a condition is such as \"split = 'test'\", on {known}."
            ) from error
        return [self._found(row, query) for row in rows[:count]]

    @staticmethod
    def nearest(table: Any, query: Float[np.ndarray, " dim"], count: int) -> Any:
        """Return the LanceDB query of a vector search, not yet executed."""
        search = table.search(query, vector_column_name="vector").distance_type("cosine").limit(count)
        return search.nprobes(NPROBES)

    def _found(self, row: dict[str, Any], query: Float[np.ndarray, " dim"]) -> Hit:
        similarity = float(np.array(row["vector"], np.float32) @ query)
        own = {name: row[name] for name in self.filters if name not in RESERVED_COLUMNS}
        return Hit(row["key"], similarity, row["caption"], row["split"], own, row["thumbnail"])


def embedded_query(run: Run, words: str = "", image: Any = None, sound: Any = None) -> Float[np.ndarray, " dim"]:
    """Embed and normalize a query: words, or an image or a sound (paths or encoded bytes).

    Raises UserError unless it is exactly one of them, for a run that does not embed it, and for an unreadable file.
    """
    given = {"text": words.strip() or None, "image": image, "sound": sound}
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise UserError("Say what to look for: words, an image (--image), or a sound (--audio).")
    try:
        (vector,) = run.embed(1, **{name: [value] for name, value in asked.items()}).values()
    except UnreadableExample as error:
        raise unusable(error) from error
    return vector[0].numpy()


NPROBES = 60  # number of IVF partitions searched (nprobes)
RRF_K = 10  # candidates per result of vector and full-text search, before their ranks are fused


class _Source:
    """Columns of an index from a corpus, besides vectors.

    keys: of every row; duplicates are numbered from the second on. metadata: columns for filters, the plain columns of
    the table and the cells of its table rows: name -> (column, cell, type).
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.said = corpus.columns[corpus.column_with(Text)] if corpus.has_modality(Text) else None
        self.seen = has_images(corpus)
        self.split = {int(row): split for split, rows in corpus.splits.items() for row in rows}
        self.keys: list[str] = []
        times: Counter[str] = Counter()
        for row in range(len(corpus)):
            key = corpus.key(row)
            times[key] += 1
            self.keys.append(key if times[key] == 1 else f"{key}#{times[key]}")
        self.metadata: dict[str, tuple[str, str | None, pa.DataType]] = {}
        shown = {name for name, kind in corpus.columns.items() if isinstance(kind, Image | Video | Text)}
        for field in corpus.table.schema if corpus.table.num_columns else ():
            if isinstance(corpus.columns.get(field.name), Table):
                for cell in field.type:
                    self._add(f"{field.name}_{cell.name}", field.name, cell.name, cell.type)
            elif field.name not in {*shown, corpus.keys, "split"}:
                self._add(field.name, field.name, None, field.type)

    def _add(self, name: str, column: str, cell: str | None, kind: pa.DataType) -> None:
        if pa.types.is_large_string(kind):
            kind = pa.string()
        if kind in (pa.string(), pa.bool_()) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            name = re.sub(r"\W", "_", name)
            self.metadata[f"{name}_" if name in RESERVED_COLUMNS else name] = column, cell, kind

    def _cells(self, row: int) -> dict[str, Any]:
        """Return the metadata of a row."""
        raw = {column: self.corpus.raw(row, column) for column, _, _ in self.metadata.values()}
        return {
            name: raw[column] if cell is None else (raw[column] or {}).get(cell)
            for name, (column, cell, _) in self.metadata.items()
        }

    def digest(self, row: int) -> str:
        """Return a digest of everything stored for an example; for files, of path, size and modification time."""
        digest = hashlib.blake2b(repr(self._cells(row)).encode(), digest_size=16)
        for name, modality in self.corpus.columns.items():
            value = self.corpus.raw(row, name)
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
            if isinstance(value, str) and isinstance(modality, Image | Video):
                try:
                    about = os.stat((modality.root or Path()) / value)
                    digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
                except OSError:
                    digest.update(b"missing")
        return digest.hexdigest()

    def _thumbnail(self, row: int) -> bytes | None:
        """Return the thumbnail, or None for examples without an image."""
        try:
            return thumbnail(image_of(self.corpus, row)) if self.seen else None
        except UnreadableExample:
            return None

    def table(
        self, rows: np.ndarray, examples: list[Example], digests: list[str], vectors: Float[np.ndarray, "rows dim"]
    ) -> pa.Table:
        """Return the rows to store."""
        records = []
        for row, example, digest in zip(rows.tolist(), examples, digests, strict=True):
            captions = example.get("text", [])
            shown = self.said.in_main_language(captions)[0].text if isinstance(self.said, Text) and captions else ""
            records.append(
                {
                    "key": self.keys[row],
                    "split": self.split.get(row),
                    "caption": shown,
                    "text": "\n".join(caption.text for caption in captions),
                    "thumbnail": self._thumbnail(row),
                    "digest": digest,
                    **self._cells(row),
                }
            )
        types = dict.fromkeys(("key", "split", "caption", "text", "digest"), pa.string()) | {"thumbnail": pa.binary()}
        types |= {name: kind for name, (_, _, kind) in self.metadata.items()}
        table = pa.Table.from_pylist(records, pa.schema(types))
        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        return table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))


def thumbnail(image: PILImage.Image) -> bytes:
    """Return a JPEG on white, at most `THUMBNAIL` pixels wide and high."""
    small = to_rgb(image).copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return encoded(small, "JPEG", quality=85)


# LanceDB


def _connected(place: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise needs("lancedb", "index", "An index") from error
    with _saying(f"{place} cannot be opened"):
        return lancedb.connect(place)


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Convert exceptions of LanceDB to UserError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{what}: {_said(error)}.") from error


def _is_there(place: str) -> bool:
    """Return whether there is an index already, also at a URL."""
    if not is_index(place):
        return False
    with _saying(f"{place} cannot be opened"):
        return TABLE in _connected(place).list_tables().tables


def _opened(place: str) -> Any:
    with _saying(f"The index {place} cannot be opened"):
        return _connected(place).open_table(TABLE)


def _about(table: Any) -> Origin:
    """Return the provenance. Raises UserError for a table that polymodal did not build."""
    stored = (table.schema.metadata or {}).get(ABOUT)
    if stored is None:
        raise UserError("This LanceDB table was not made by polymodal index.")
    try:
        return Origin(**json.loads(stored))
    except (ValueError, TypeError) as error:
        raise UserError("This index is damaged or of another version; make it again.") from error


def _check_same(there: Origin, wanted: Origin, place: str) -> None:
    if there.weights != wanted.weights:
        raise UserError(
            f"The index {place} was made with other weights, those of {there.run}; name another place with --out."
        )
    if there.data != json.loads(json.dumps(wanted.data)):
        raise UserError(f"The index {place} is of other data, {_named(there.data)}; name another place with --out.")


def _named(data: Mapping[str, Any]) -> str:
    return str(data.get("data") or data.get("corpus") or "a mixture")


def _digests(table: Any) -> dict[str, str]:
    """Return key -> digest of all entries."""
    stored = table.search().select(["key", "digest"]).limit(table.count_rows()).to_arrow()
    return dict(zip(stored["key"].to_pylist(), stored["digest"].to_pylist(), strict=True))


def _write(place: str, table: Any, rows: pa.Table, about: Origin, replacing: bool) -> Any:
    """Return the table, creating it with its first rows."""
    with _saying(f"The index {place} cannot be written, but what was written stays"):
        if table is None:
            described = rows.replace_schema_metadata({ABOUT: json.dumps(asdict(about))})
            return _connected(place).create_table(TABLE, described)
        if replacing:
            table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        else:
            table.add(rows)
    return table


def _remove(table: Any, keys: list[str]) -> None:
    for start in range(0, len(keys), CHUNK):
        quoted = ", ".join("'" + key.replace("'", "''") + "'" for key in keys[start : start + CHUNK])
        table.delete(f"key IN ({quoted})")


def _arrange(table: Any) -> None:
    """Compact small fragments, and build the full-text and, if worthwhile, the vector index."""
    from lancedb.index import FTS

    table.optimize()
    indexed = {column for index in table.list_indices() for column in index.columns}
    if "text" not in indexed:
        table.create_index("text", config=FTS())
    if "vector" not in indexed and table.count_rows() >= ANN_FROM:
        ann_index(table)


def ann_index(table: Any) -> None:
    """Build an IVF index: partitions around centroids, of which a search scans the nearest ones exactly.

    HNSW over 8-bit quantized vectors, which LanceDB has as well, is no faster here, has lower recall, and takes far
    longer to build (benchmarks/search.py).
    """
    from lancedb.index import IvfFlat

    table.create_index("vector", config=IvfFlat(distance_type="cosine"))


def _said(error: Exception) -> str:
    """Return the first sentence of an error of LanceDB, without error types."""
    first = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".")
    return re.sub(r"^((Invalid input|Schema error|lance error|LanceError\(\w+\))[,:] )+", "", first)
