"""Search of a vector index: the examples nearest to an image, a text or a sound, with conditions and full text.

`serving.index_build` builds the index.
"""

from __future__ import annotations

import base64
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image as PILImage

from polymodal.errors import UnreadableExample, UserError, nearest_path, unusable
from polymodal.modalities.image import open_image
from polymodal.serving.index_table import (
    RESERVED_COLUMNS,
    first_sentence,
    is_index,
    open_table,
    read_origin,
)
from polymodal.training.feature_cache import weights_key
from polymodal.training.run import Run, load_run

NPROBES = 60  # number of IVF partitions searched (nprobes)
RRF_K = 10  # candidates per result of vector and full-text search, before their ranks are fused


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


class Index:
    """An existing index for searching. Raises UserError when there is none."""

    def __init__(self, place: str):
        if not is_index(place):
            near = nearest_path(Path(place))
            advice = (
                f"did you mean {near}?" if near else f"make one with: polymodal index RUN --data PATH --out {place}."
            )
            raise UserError(f"{place} is no index; {advice}")
        self.place = place
        self.table = open_table(place)
        self.about = read_origin(self.table)
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
                f"The search failed: {first_sentence(error)}; a condition is such as \"split = 'test'\", on {known}."
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
