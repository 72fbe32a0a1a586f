"""Graphs: named nodes, and edges with a relation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from polymodal.errors import UnreadableExample


class Edge(NamedTuple):
    """Directed edge. source, target: node indices."""

    source: int
    target: int
    relation: str


class NamedGraph(NamedTuple):
    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Graph:
    """Column of small graphs, such as scene graphs or knowledge graphs."""

    @property
    def arrow_type(self) -> pa.DataType:
        edge = pa.struct({"source": pa.int32(), "target": pa.int32(), "relation": pa.string()})
        return pa.struct({"nodes": pa.list_(pa.string()), "edges": pa.list_(edge)})

    def decode(self, value: Mapping[str, Any]) -> NamedGraph:
        """Decode a graph. Raises UnreadableExample for an edge to a missing node."""
        edges = tuple(Edge(edge["source"], edge["target"], edge["relation"]) for edge in value["edges"])
        if any(not 0 <= end < len(value["nodes"]) for edge in edges for end in edge[:2]):
            raise UnreadableExample("an edge of the graph leads to no node")
        return NamedGraph(tuple(value["nodes"]), edges)

    def describe(self, value: NamedGraph) -> str:
        first = value.edges[:3]
        text = "; ".join(f"{value.nodes[edge.source]} - {edge.relation} - {value.nodes[edge.target]}" for edge in first)
        return f"{len(value.nodes)} nodes, {len(value.edges)} edges: {text}"

    def plot(self, value: NamedGraph, axes: Any) -> None:
        """Plot at most nine nodes on a circle."""
        count = min(len(value.nodes), 9)
        positions = [
            (math.cos(2 * math.pi * index / count), math.sin(2 * math.pi * index / count)) for index in range(count)
        ]
        for edge in value.edges:
            if max(edge.source, edge.target) < count:
                start, end = positions[edge.source], positions[edge.target]
                axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#999999", "linewidth": 0.6})
                middle = 0.4 * start[0] + 0.6 * end[0], 0.4 * start[1] + 0.6 * end[1]
                axes.text(*middle, edge.relation.rpartition(".")[2], fontsize=4.5, color="#777777", ha="center")
        for (x, y), name in zip(positions, value.nodes, strict=False):
            axes.text(x, y, name[:22], fontsize=6, ha="center", va="center", bbox={"facecolor": "#e3f2fd", "pad": 1})
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.3, 1.3))
        axes.axis("off")
