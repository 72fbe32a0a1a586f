"""A knowledge graph over the training rows, which is made when the column is fitted and saved as Parquet with a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from polymodal.corpora.corpus import Corpus
from polymodal.data.columns.column import Column
from polymodal.data.columns.image import ImageColumn
from polymodal.data.edge_sampler import EdgeSampler
from polymodal.data.knowledge_graph import KnowledgeGraph
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities import Image

MEMORY_FOR_IMAGES = 2**30


class KnowledgeColumn(Column):
    """A row of the corpus as a node of the graph. Rows of other splits are no nodes, so that none of their edges leak.

    convert: makes the graph from a corpus. graph: the fitted one.
    """

    reads: ClassVar[tuple[type, ...]] = (Image,)

    def __init__(self, convert: Callable[[Corpus], KnowledgeGraph], graph: KnowledgeGraph | None = None):
        self.convert = convert
        self._samplers: dict[tuple[Any, ...], EdgeSampler] = {}
        self._images: dict[int, np.ndarray] = {}
        if graph is not None:
            self.graph = graph

    def fit(self, corpora: Sequence[Corpus], fitted: Mapping[str, Column]) -> KnowledgeColumn:
        return type(self)(self.convert, self.convert(corpora[0]))

    def load(self, corpus: Corpus, row: int) -> tuple[Corpus, Any]:
        """Return the corpus, from which images of neighbors are read, and the row."""
        return corpus, row

    def __call__(self, values: list[Any]) -> list[Any]:
        return values

    def sampler(self, relations: Collection[str], max_degree: int) -> EdgeSampler:
        """Return the sampler of neighbors by some relations, made once."""
        key = (*sorted(relations), max_degree)
        if key not in self._samplers:
            self._samplers[key] = EdgeSampler(self.graph, relations, max_degree)
        return self._samplers[key]

    def neighborhoods(
        self,
        rows: Sequence[int],
        links: Mapping[str, tuple[str, Collection[str]]],
        max_degree: int,
        rngs: Sequence[np.random.Generator],
    ) -> Int[np.ndarray, "batch items"]:
        """Return the nodes of each row: image, text, a neighbor by each link, and the text again if it is a caption.

        links: name of the neighbor -> the anchor, image or text, and the relations. The text is a neighbor of the image
        by the relations of the link "text", and without one any text of the graph. -1 where there is none.
        """
        samplers = {name: self.sampler(relations, max_degree) for name, (_, relations) in links.items()}
        texts, sampled = self.graph.of_type("text"), []
        for row, rng in zip(rows, rngs, strict=True):
            image = self.graph.image_of_row.get(row, -1)
            caption = samplers["text"].sample(image, rng) if "text" in samplers else -1
            other = int(texts[rng.integers(len(texts))]) if len(texts) else -1
            anchors = {"image": image, "text": caption if caption >= 0 else other}
            neighbors = [
                samplers[name].sample(anchors[anchor], rng) for name, (anchor, _) in links.items() if name != "text"
            ]
            sampled.append([*anchors.values(), *neighbors, caption])
        return np.array(sampled, dtype=np.int64)

    def captioned_rows(self, corpus: Corpus) -> Int[np.ndarray, " rows"]:
        """Return the rows whose image is linked to a caption in training. Raises UserError where there are none."""
        graph = self.graph
        described = np.array(graph.triplets.column("relation").to_pylist(), dtype=str) == "described_by"
        rows = np.unique(graph.rows[graph.heads[described & graph.having("train")]])
        if not len(rows):
            raise UserError(f"No training image of '{corpus.name}' has a caption to be paired with.{corpus.hint}")
        return rows

    def anchor_rows(self) -> Int[np.ndarray, " rows"]:
        """Return the rows that are nodes."""
        return np.array([*self.graph.image_of_row], dtype=np.int64)

    def texts(self, nodes: Sequence[int]) -> list[str]:
        """Return the text forms of nodes; the empty text for none."""
        return [self.graph.payloads[node] if node >= 0 else "" for node in nodes]

    def images(
        self, anchors: Sequence[tuple[Corpus, Any]], nodes: Sequence[int], column: ImageColumn, images: Sequence[Any]
    ) -> list[Any]:
        """Return the images of nodes, loaded once while memory allows; the anchor's own where there is none.

        anchors: what `load` returned of the anchor of each. images: of the anchors.
        """
        each = zip(anchors, nodes, images, strict=True)
        return [
            image if node < 0 or self.graph.rows[node] == row else self._image(corpus, node, column, image)
            for (corpus, row), node, image in each
        ]

    def _image(self, corpus: Corpus, node: int, column: ImageColumn, default: Any) -> Any:
        if node in self._images:
            return self._images[node]
        try:
            image = column.load(corpus, int(self.graph.rows[node]))
        except UnreadableExample:
            return default
        if (len(self._images) + 1) * image.nbytes < MEMORY_FOR_IMAGES:
            self._images[node] = image
        return image

    def save(self, directory: Path) -> None:
        self.graph.save(directory)

    def restore(self, settings: Mapping[str, Any], directory: Path) -> KnowledgeColumn:
        return type(self)(self.convert, KnowledgeGraph.load(directory))
