"""Multimodal knowledge graph of UKnow (Gong et al. 2024): five types of unit knowledge over images and texts.

Nodes are images, objects in them, texts, and symbols. A triplet (head, relation, tail) has the provenance of the step
that made it and, where it was thresholded, a confidence. Several relations may link the same nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Shaped

from polymodal.errors import UserError, unknown

UnitKnowledge = Literal["I_in", "T_in", "I_cross", "T_cross", "IT_cross"]
UNITS: tuple[UnitKnowledge, ...] = ("I_in", "T_in", "I_cross", "T_cross", "IT_cross")
CONTENT = ("image", "object", "text")  # node types with content of their own; all others are symbols
SYMBOLS = ("class", "tag", "entity", "keyword", "event", "time", "place")
NODE_TYPES = (*CONTENT, *SYMBOLS)
NODES_FILE, TRIPLETS_FILE = "knowledge-nodes.parquet", "knowledge-triplets.parquet"
NODES = pa.schema(
    {"type": pa.string(), "payload": pa.string(), "row": pa.int64(), "box": pa.list_(pa.float32())}
)  # a node's number is its place
TRIPLETS = pa.schema(
    {
        "head": pa.int64(),
        "relation": pa.string(),
        "tail": pa.int64(),
        "unit": pa.string(),
        "provenance": pa.string(),
        "confidence": pa.float32(),
        "split": pa.string(),
    }
)


class Relation(NamedTuple):
    """Signature of a relation: its unit knowledge type, and the node types that its head and its tail may have.

    Triplets of a symmetric relation are stored in both directions.
    """

    unit: UnitKnowledge
    head: tuple[str, ...]
    tail: tuple[str, ...]
    symmetric: bool = False


RELATIONS: Mapping[str, Relation] = {
    "has_object": Relation("I_in", ("image",), ("object",)),
    "is_a": Relation("I_in", ("object",), ("class",)),
    "has_tag": Relation("I_in", ("image",), ("tag",)),
    "mentions": Relation("T_in", ("text",), ("entity",)),
    "has_keyword": Relation("T_in", ("text",), ("keyword",)),
    "has_sentence": Relation("T_in", ("text",), ("text",)),
    "similar_to": Relation("I_cross", ("image",), ("image",), symmetric=True),
    "same_event": Relation("I_cross", ("image",), ("image",), symmetric=True),
    "continues": Relation("T_cross", ("text",), ("text",)),
    "same_item": Relation("T_cross", ("text",), ("text",), symmetric=True),
    "same_topic": Relation("T_cross", ("text",), ("text",), symmetric=True),
    "same_time": Relation("T_cross", ("text",), ("text",), symmetric=True),
    "same_place": Relation("T_cross", ("text",), ("text",), symmetric=True),
    "subevent_of": Relation("T_cross", ("event",), ("event",)),
    "described_by": Relation("IT_cross", ("image",), ("text",)),
    "belongs_to_event": Relation("IT_cross", ("image",), ("event",)),
    "named": Relation("IT_cross", ("object",), ("entity",)),
    "at_time": Relation("IT_cross", ("image",), ("time",)),
    "at_place": Relation("IT_cross", ("image",), ("place",)),
}


COMPARED = ("image", "object", "text", "tag", "entity", "keyword")  # node types whose text form describes an anchor


def relations_of(unit: UnitKnowledge, anchor: str) -> tuple[str, ...]:
    """Return the relations of a type of unit knowledge from an anchor, image or text, to what it is contrasted with."""
    of_unit = {name: one for name, one in RELATIONS.items() if one.unit == unit}
    return tuple(name for name, one in of_unit.items() if anchor in one.head and {*one.tail} <= {*COMPARED})


@dataclass(frozen=True)
class KnowledgeGraph:
    """Tables of nodes (`NODES`) and triplets (`TRIPLETS`).

    Raises UserError for a relation that is none, a unit knowledge type that is not the relation's, and a node of a type
    that the relation does not have there.
    """

    nodes: pa.Table
    triplets: pa.Table

    def __post_init__(self) -> None:
        types = np.array(self.nodes.column("type").to_pylist(), dtype=object)
        relations = np.array(self.triplets.column("relation").to_pylist(), dtype=object)
        units = np.array(self.triplets.column("unit").to_pylist(), dtype=object)
        for name in dict.fromkeys(relations.tolist()):
            if name not in RELATIONS:
                raise unknown("relation", str(name), RELATIONS)
            places, signature = np.flatnonzero(relations == name), RELATIONS[name]
            if {*units[places]} != {signature.unit}:
                raise UserError(f"Triplets of '{name}' are {signature.unit} knowledge, and not of another type.")
            for end, allowed in ((self.heads, signature.head), (self.tails, signature.tail)):
                if strange := {*types[end[places]]} - {*allowed}:
                    raise UserError(f"'{name}' links {' or '.join(allowed)} nodes there, not '{min(strange)}'.")

    def __len__(self) -> int:
        return self.nodes.num_rows

    @cached_property
    def heads(self) -> Int[np.ndarray, " triplets"]:
        return self.triplets.column("head").to_numpy()

    @cached_property
    def tails(self) -> Int[np.ndarray, " triplets"]:
        return self.triplets.column("tail").to_numpy()

    @cached_property
    def types(self) -> list[str]:
        return self.nodes.column("type").to_pylist()

    @cached_property
    def payloads(self) -> list[str]:
        return self.nodes.column("payload").to_pylist()

    @cached_property
    def rows(self) -> Int[np.ndarray, " nodes"]:
        """Row of the corpus of each image, object and text; -1 for symbols."""
        return pc.fill_null(self.nodes.column("row"), -1).to_numpy()

    @cached_property
    def relations(self) -> list[str]:
        """Names of the relations that it has, in the order of `RELATIONS`."""
        present = {*pc.unique(self.triplets.column("relation")).to_pylist()}
        return [name for name in RELATIONS if name in present]

    @cached_property
    def relation_numbers(self) -> Int[np.ndarray, " triplets"]:
        number = {name: place for place, name in enumerate(self.relations)}
        return np.array([number[name] for name in self.triplets.column("relation").to_pylist()], dtype=np.int64)

    @cached_property
    def training_triplets(self) -> Int[np.ndarray, " training"]:
        """Places of the triplets that are not held out."""
        return np.flatnonzero(self.having("train"))

    @cached_property
    def image_of_row(self) -> dict[int, int]:
        """Number of the image node of each row of the corpus."""
        return {int(self.rows[node]): node for node in self.of_type("image").tolist()}

    def of_type(self, name: str) -> Int[np.ndarray, " nodes"]:
        """Return the numbers of the nodes of a type."""
        return np.flatnonzero([kind == name for kind in self.types])

    def having(self, split: str = "", units: Collection[str] = UNITS) -> Bool[np.ndarray, " triplets"]:
        """Return which triplets are of a split, by default any, and of one of these types of unit knowledge."""
        of_unit = np.isin(np.array(self.triplets.column("unit").to_pylist(), dtype=str), list(units))
        return of_unit & (np.array(self.triplets.column("split").to_pylist(), dtype=str) == split if split else True)

    def statistics(self) -> dict[str, Any]:
        """Return numbers of nodes by type and of triplets by relation and unit, and the mean and the largest degree."""
        degree = np.bincount(np.concatenate([self.heads, self.tails]), minlength=len(self))
        counts = {name: pc.value_counts(self.triplets.column(name)).to_pylist() for name in ("relation", "unit")}
        return {
            "nodes": {name: count for name in NODE_TYPES if (count := self.types.count(name))},
            **{name: {one["values"]: one["counts"] for one in of} for name, of in counts.items()},
            "mean_degree": float(degree.mean()) if len(self) else 0.0,
            "max_degree": int(degree.max(initial=0)),
        }

    def with_split(self, validation: float, test: float, seed: int = 0) -> KnowledgeGraph:
        """Return the graph with fractions of its triplets held out for link prediction.

        A triplet, its inverse and all others between the same two nodes are in one split. Nodes keep at least one
        neighbor in training.
        """
        ends = np.sort(np.stack([self.heads, self.tails]), axis=0)
        pairs, pair_of = np.unique(ends, axis=1, return_inverse=True)
        degree = np.bincount(pairs.ravel(), minlength=len(self))
        wanted = [round(fraction * pairs.shape[1]) for fraction in (validation, test)]
        names = np.full(pairs.shape[1], "train", dtype=object)
        for pair in np.random.default_rng(seed).permutation(pairs.shape[1]).tolist():
            a, b = pairs[:, pair].tolist()
            split = 0 if wanted[0] else 1
            if a != b and wanted[split] and min(degree[a], degree[b]) > 1:
                names[pair] = ("validation", "test")[split]
                wanted[split] -= 1
                degree[[a, b]] -= 1
        column = pa.array(names[pair_of.ravel()].tolist(), pa.string())
        place = self.triplets.column_names.index("split")
        return KnowledgeGraph(self.nodes, self.triplets.set_column(place, "split", column))

    def save(self, directory: Path) -> None:
        pq.write_table(self.nodes, directory / NODES_FILE)
        pq.write_table(self.triplets, directory / TRIPLETS_FILE)

    @classmethod
    def load(cls, directory: Path) -> KnowledgeGraph:
        """Read the tables that `save` wrote. Raises UserError where one is missing or damaged."""
        tables = []
        for name, schema in ((NODES_FILE, NODES), (TRIPLETS_FILE, TRIPLETS)):
            try:
                tables.append(pq.read_table(directory / name).select(schema.names).cast(schema))
            except (OSError, KeyError, pa.ArrowException) as error:
                raise UserError(f"{directory / name} is no table of a knowledge graph; restore the file.") from error
        return cls(*tables)


@dataclass
class GraphBuilder:
    """Collects nodes and triplets, each once. Symbols of equal payload up to capitals and blanks are one node."""

    _nodes: dict[tuple[str, Any], dict[str, Any]] = field(default_factory=dict)
    _places: dict[tuple[str, Any], int] = field(default_factory=dict)
    _triplets: dict[tuple[int, str, int], dict[str, Any]] = field(default_factory=dict)

    def node(self, kind: str, payload: str, row: int | None = None, box: tuple[float, ...] | None = None) -> int:
        """Return the number of a node, which is new unless it is known.

        row: of images, objects and texts. Images are one a row, objects one a box; texts of equal payload are one node.
        """
        plain = " ".join(payload.split())
        key: tuple[str, Any] = (kind, plain.casefold() if kind in SYMBOLS else plain)
        if kind in ("image", "object"):
            key = (kind, (row, plain, box))
        if key not in self._places:
            self._places[key] = len(self._places)
            self._nodes[key] = {"type": kind, "payload": plain, "row": row, "box": None if box is None else list(box)}
        return self._places[key]

    def triplet(self, head: int, relation: str, tail: int, provenance: str, confidence: float | None = None) -> None:
        """Add a triplet, and its inverse if the relation is symmetric; loops and repetitions are left out."""
        signature = RELATIONS[relation]
        for a, b in ((head, tail), (tail, head)) if signature.symmetric else ((head, tail),):
            if a != b:
                value = {"unit": signature.unit, "provenance": provenance, "confidence": confidence, "split": "train"}
                self._triplets.setdefault((a, relation, b), value)

    def graph(self) -> KnowledgeGraph:
        triplets = [
            {"head": head, "relation": relation, "tail": tail, **value}
            for (head, relation, tail), value in self._triplets.items()
        ]
        return KnowledgeGraph(
            pa.Table.from_pylist(list(self._nodes.values()), NODES), pa.Table.from_pylist(triplets, TRIPLETS)
        )


def edge_precision(graph: KnowledgeGraph, relation: str, labels: Shaped[np.ndarray, " rows"]) -> float:
    """Return the fraction of a relation's triplets whose ends have the same true label; NaN without triplets.

    labels: by row of the corpus.
    """
    places = np.flatnonzero(np.array(graph.triplets.column("relation").to_pylist(), dtype=object) == relation)
    if not len(places):
        return float("nan")
    head, tail = (labels[graph.rows[end[places]]] for end in (graph.heads, graph.tails))
    return float(np.mean(head == tail))
