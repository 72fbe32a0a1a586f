"""Recommendation: ranks of held-out items of users' histories among all items that they have not chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.errors import UserError
from polymodal.evaluation.panels import CORRECT, EXAMPLES, NEUTRAL, NOTE, Panels, clipped, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import History
from polymodal.training.run import answers
from polymodal.types import Batch

FIRST = (10, 20, 50)
PLOTTED = 8  # items of a user
KNOWN = 0.8  # fraction of a history, from its beginning, that is given to the method


@runtime_checkable
class CanRecommend(Protocol):
    """Capability: a score for every item of the catalogue, higher for what the person may choose next."""

    def recommend(self, batch: Batch) -> Tensor: ...


def ranking_scores(
    name: str, scores: Float[np.ndarray, "people items"], observed: Sequence[np.ndarray], wanted: Sequence[np.ndarray]
) -> list[Score]:
    """Recall and NDCG at 10, 20 and 50. observed: items that are not recommended, since they were chosen before.

    Recall is the fraction of the held-out items among them, NDCG discounts each by the logarithm of its rank and
    divides by the best order. (MultVAE's Recall@k divides by the smaller of k and the number of wanted items.) The
    unit is a person; chance is the expectation of a random order. An item whose score is NaN is never ranked.
    """
    largest = min(max(FIRST), scores.shape[1])
    hit, gains, best, candidates = [], [], [], []
    discount = 1 / np.log2(np.arange(largest) + 2)
    for row, chosen, right in zip(scores, observed, wanted, strict=True):
        open_to = np.nan_to_num(row, nan=-np.inf)
        open_to[chosen] = -np.inf
        order = np.argsort(-open_to, kind="stable")[:largest]
        hit.append(np.isin(order, right) & (open_to[order] > -np.inf))
        candidates.append(len(row) - len(chosen))
        best.append(np.cumsum(discount * (np.arange(largest) < len(right))))
        gains.append(np.cumsum(hit[-1] * discount))
    counts = np.array([len(right) for right in wanted])
    likely = counts / np.array(candidates)  # that an item at any place is wanted
    scored = []
    for first in FIRST:
        last = min(first, largest) - 1
        recall = np.cumsum(hit, axis=1)[:, last] / counts
        scored.append(Score(f"{name}/Recall@{first}", recall, float(((last + 1) / np.array(candidates)).mean())))
        ideal = np.stack(best)[:, last]
        chance = float((likely * discount[: last + 1].sum() / ideal).mean())
        scored.append(Score(f"{name}/NDCG@{first}", np.stack(gains)[:, last] / ideal, chance))
    return scored


def recommendation_scores(method: nn.Module, processor: Any, reader: Reader, split: str) -> list[Score]:
    """Of each person's history the first 80 % are given, and the rest is to be found.

    Beside the method, the order of how often training people chose an item, which is the same for all.
    """
    corpus = reader.corpus
    assert isinstance(method, CanRecommend)
    histories = [example["history"] for example in reader.read_all(corpus.rows(split))[1]]
    cut = [max(1, round(KNOWN * len(history))) for history in histories]
    pairs = [(h[:end], h[end:]) for h, end in zip(histories, cut, strict=True) if end < len(h)]
    if not pairs:
        raise UserError(f"No history of the split '{split}' of '{corpus.name}' is long enough to hold some of it back.")
    observed, wanted = zip(*pairs, strict=True)
    scores = torch.cat(answers(method, processor, "recommend", {"history": list(observed)})).numpy()
    ranked = ranking_scores(f"{split}/recommendation", scores, observed, wanted)
    trained = [example["history"] for example in reader.read_all(corpus.rows("train"))[1]]
    times = np.bincount(np.concatenate(trained), minlength=len(processor.history.catalogue)).astype(float)
    return ranked + ranking_scores(f"{split}/most_popular", np.tile(times, (len(observed), 1)), observed, wanted)


def plot(inputs: TaskInputs) -> Panels:
    """Users' histories, and the first recommended items: green if they were chosen later."""
    catalogue = inputs.processor.history.catalogue
    _, examples = inputs.test_examples(EXAMPLES)
    panels = []
    for example in examples:
        history = example["history"]
        cut = max(1, round(KNOWN * len(history)))
        given, wanted = history[:cut], set(history[cut:].tolist())
        (scores,) = answers(inputs.method, inputs.processor, "recommend", {"history": [given]})
        order = [item for item in scores[0].nan_to_num(-np.inf).argsort(descending=True).tolist() if item not in given]
        titles = [clipped(catalogue[item].title, 40, 1) for item in given[: -PLOTTED - 1 : -1].tolist()]
        best = [(clipped(catalogue[item].title, 40, 1), item in wanted) for item in order[:PLOTTED]]
        marked = [(title, CORRECT if right else NEUTRAL) for title, right in best]
        panels.append(
            [text_panel([(title, NOTE) for title in titles], "latest items"), text_panel(marked, "recommended")]
        )
    return Panels(panels, "Recommended items; green: chosen later", (2.2, 2.2))


task = Task(
    capability=CanRecommend,
    requires=((History,),),
    order=150,
    score=lambda inputs: inputs.over_test_splits(recommendation_scores),
    validate=lambda inputs: recommendation_scores(inputs.method, inputs.processor, inputs.reader, "validation"),
    plot=plot,
    metrics={"Recall@*": MetricKind(), "NDCG@*": MetricKind()},
    headline=("recommendation/Recall@20", "recommendation/NDCG@20", "most_popular/Recall@20"),
    forward_methods=("recommend",),
)
