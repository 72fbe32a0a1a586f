"""Link prediction: which node is the tail, or the head, of a triplet that was held out of a run's knowledge graph?

All nodes that the relation may link there are candidates, but those of other known triplets (filtered ranking).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polymodal.data.knowledge_graph import RELATIONS, KnowledgeGraph
from polymodal.errors import UserError
from polymodal.evaluation.link_prediction import filtered_ranks, ranking_metrics
from polymodal.evaluation.panels import EXAMPLES, TOP, Panel, Panels, clipped, text_panel, value_panel, verdict_color
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.models.knowledge_graph_completion import contains, in_both_directions, triplet_arrays, triplet_codes

MAX_TRIPLETS = 2000  # of a split
QUERIES = 128  # ranked together
MIN_TRIPLETS = 20  # of a type of unit knowledge with a score of its own


@runtime_checkable
class CanPredictLinks(Protocol):
    """Capability: scores of every node of the graph that it learned from as the tail of a head and a relation.

    Relations are numbered as in the graph; their inverse follow, in the same order. link_graph: None for a method that
    learned no links.
    """

    def link_graph(self) -> KnowledgeGraph | None: ...

    def link_scores(self, head: Tensor, relation: Tensor) -> Tensor: ...


def is_own_graph(inputs: TaskInputs) -> bool:
    """Whether the graph was made of the corpus that is evaluated on, and has links that were held out."""
    method: Any = inputs.method
    if (graph := method.link_graph()) is None or not graph.having("test").any():
        return False
    corpus = inputs.corpus
    images = graph.of_type("image")[:EXAMPLES]
    return all(
        graph.rows[node] < len(corpus) and " ".join(corpus.key(int(graph.rows[node])).split()) == graph.payloads[node]
        for node in images.tolist()
    )


class LinkRanker:
    """Ranks the ends of triplets of a graph. Candidates are nodes of the types that the relation has there."""

    def __init__(self, method: Any, graph: KnowledgeGraph):
        self.method, self.graph, self.count = method, graph, len(graph.relations)
        self.true_triplets = self._codes(*in_both_directions(graph, np.arange(len(graph.heads)))).unique()
        types = np.array(graph.types, dtype=object)
        signatures = [RELATIONS[name] for name in graph.relations]
        ends = [signature.tail for signature in signatures] + [signature.head for signature in signatures]
        self.fits = torch.from_numpy(np.stack([np.isin(types.astype(str), list(end)) for end in ends]))

    def _codes(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        return triplet_codes(head, relation, tail, len(self.graph), self.count)

    @torch.no_grad()
    def scores(self, head: Tensor, relation: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of all nodes, and which of them are no candidates."""
        device = next(self.method.parameters()).device
        scores = self.method.link_scores(head.to(device), relation.to(device)).float().cpu().numpy()
        others = contains(
            self.true_triplets, self._codes(head[:, None], relation[:, None], torch.arange(len(self.graph)))
        )
        left_out = others | ~self.fits[relation]
        return scores, left_out.scatter(1, head[:, None], True).numpy()  # graphs have no loops

    def ranks(self, triplets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ranks and numbers of candidates: of the tails of these triplets, then of their heads."""
        ends = in_both_directions(self.graph, triplets)
        ranked = []
        for queries in torch.arange(len(ends[0])).split(QUERIES):
            h, r, t = (end[queries] for end in ends)
            scores, left_out = self.scores(h, r)
            ranked.append(filtered_ranks(scores, t.numpy(), left_out))
        return tuple(map(np.concatenate, zip(*ranked, strict=True)))  # type: ignore[return-value]


def split_scores(inputs: TaskInputs, split: str, by_unit: bool = True) -> list[Score]:
    """Scores of the triplets of a split of the graph, and of those of each type of unit knowledge."""
    method: Any = inputs.method
    graph = method.link_graph()
    assert graph is not None
    places = np.flatnonzero(graph.having(split))
    if not len(places):
        raise UserError(f"No link of the graph is held out for '{split}'; train with more --held-out-links.")
    places = places[:: -(-len(places) // MAX_TRIPLETS)]
    ranks, candidates = LinkRanker(method, graph).ranks(places)
    ends = np.sort(np.stack([graph.heads[places], graph.tails[places]]), axis=0)
    unit = np.tile(np.unique(ends, axis=1, return_inverse=True)[1].ravel(), 2)
    scores = ranking_metrics(f"{split}/link_prediction", ranks, candidates, unit)
    units = np.tile(np.array(graph.triplets.column("unit").to_pylist())[places], 2)
    for name in np.unique(units).tolist() if by_unit else ():
        if (units == name).sum() >= 2 * MIN_TRIPLETS:
            of = units == name
            scores += ranking_metrics(f"{split}/link_prediction/{name}", ranks[of], candidates[of], unit[of])
    return scores


def plot(inputs: TaskInputs) -> Panels:
    """Held-out triplets with an image as the head: the image, the relation, and the tails that score best."""
    method: Any = inputs.method
    graph = method.link_graph()
    assert graph is not None
    head, relation, tail = triplet_arrays(graph)
    kinds = np.array(graph.types, dtype=object)
    shown = graph.having("test") & (kinds[head] == "image") & (kinds[tail] != "image")
    places = np.flatnonzero(shown)[:: max(int(shown.sum()) // EXAMPLES, 1)][:EXAMPLES]
    if not len(places):
        return Panels([[text_panel(["No link of an image to a text or a symbol is held out."])]])
    ends = [torch.tensor(one[places]) for one in (head, relation)]
    scores, left_out = LinkRanker(method, graph).scores(*ends)
    rows: list[list[Panel]] = []
    for number, place in enumerate(places.tolist()):
        left_out[number, tail[place]] = False
        order = np.argsort(-np.where(left_out[number], -np.inf, scores[number]), kind="stable")
        order = order[: min(TOP, int((~left_out[number]).sum()))]
        lines = [
            (clipped(graph.payloads[node], 44, 1), verdict_color(node == int(tail[place]))) for node in order.tolist()
        ]
        row = int(graph.rows[head[place]])
        right = bool(order[0] == tail[place])
        title = graph.relations[relation[place]]
        rows.append([value_panel(inputs.corpus, row, inputs.item_column, title, right), text_panel(lines)])
    return Panels(rows, "Held-out links of images, and the nodes that score best (green: the right one)", [1, 3.4])


task = Task(
    capability=CanPredictLinks,
    condition=is_own_graph,
    order=89,
    score=lambda inputs: split_scores(inputs, "test"),
    plot=plot,
    metrics={"MRR": MetricKind(), "Hits@*": MetricKind()},
    headline=("link_prediction/Hits@10", "link_prediction/MRR"),
    forward_methods=("link_scores",),
)
