"""Recommendation: do the held-out items of a user's history rank first among all items that the user has not seen?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.data.loader import Reader
from polymodal.evaluation.histories import SplitHistories
from polymodal.evaluation.panels import CORRECT, EXAMPLES, NEUTRAL, NOTE, Panels, clipped, text_panel
from polymodal.evaluation.statistics import MetricKind, Score
from polymodal.evaluation.task import Task, TaskInputs
from polymodal.modalities import History
from polymodal.training.run import answers
from polymodal.types import Batch

TOP_K = (10, 20, 50)
FEW = 5  # items that a user with a short history has
PLOTTED = 8  # items of a user


@runtime_checkable
class CanRecommend(Protocol):
    """Capability: a score for every item of the catalogue, higher for what the user may choose next."""

    def recommend(self, batch: Batch) -> Tensor: ...


def ranking_scores(
    name: str, scores: Float[np.ndarray, "users items"], given: Sequence[np.ndarray], held_out: Sequence[np.ndarray]
) -> list[Score]:
    """Recall@k, normalized Recall@k and NDCG@k for k of 10, 20 and 50. given: items that are never recommended.

    Recall is the fraction of the held-out items among the first k. Normalized Recall divides by min(k, number of
    held-out items) instead, as Multi-VAE and its successors do (Liang et al. 2018, section 4.2). NDCG discounts hits by
    the logarithm of the rank and is normalized by the best order. The unit is a user; chance is the expectation of a
    random order. An item whose score is NaN is never found.
    """
    largest = min(max(TOP_K), scores.shape[1])
    hits, gains, ideal_gains, candidates = [], [], [], []
    discount = 1 / np.log2(np.arange(largest) + 2)
    for user_scores, excluded, relevant in zip(scores, given, held_out, strict=True):
        open_scores = np.nan_to_num(user_scores, nan=-np.inf)
        open_scores[excluded] = -np.inf
        order = np.argsort(-open_scores, kind="stable")[:largest]
        hits.append(np.isin(order, relevant) & (open_scores[order] > -np.inf))
        candidates.append(len(user_scores) - len(excluded))
        ideal_gains.append(np.cumsum(discount * (np.arange(largest) < len(relevant))))
        gains.append(np.cumsum(hits[-1] * discount))
    counts = np.array([len(relevant) for relevant in held_out])
    ranked: list[Score] = []
    relevance = counts / np.array(candidates)  # probability that a random candidate is held out
    for k in TOP_K:
        last = min(k, largest)
        places = np.minimum(last, candidates)  # a user may have fewer candidates than k
        hit = np.cumsum(hits, axis=1)[:, last - 1]
        for metric, divisor in ((f"Recall@{k}", counts), (f"normalized_Recall@{k}", np.minimum(k, counts))):
            ranked.append(Score(f"{name}/{metric}", hit / divisor, float((relevance * places / divisor).mean())))
        ideal = np.stack(ideal_gains)[:, last - 1]
        chance = float((relevance * np.cumsum(discount)[places - 1] / ideal).mean())
        ranked.append(Score(f"{name}/NDCG@{k}", np.stack(gains)[:, last - 1] / ideal, chance))
    return ranked


def recommendation_scores(method: nn.Module, processor: Any, reader: Reader, split: str) -> list[Score]:
    """Rank items given the first 80 % of each user's history, and given its first 5 items alone, for the same held-out
    items; the popularity baseline ranks by how many training users chose an item."""
    corpus, histories = reader.corpus, SplitHistories.of(reader, split)
    assert isinstance(method, CanRecommend)
    ranked: list[Score] = []
    few = [items[:FEW] for items in histories.given]
    for name, given in ((f"{split}/recommendation", histories.given), (f"{split}/recommendation_from_{FEW}", few)):
        scores = torch.cat(answers(method, processor, "recommend", {"history": given})).numpy()
        ranked += ranking_scores(name, scores, histories.given, histories.held_out)
    trained = [example["history"] for example in reader.read_all(corpus.rows("train"))[1]]
    times = np.bincount(np.concatenate(trained), minlength=len(processor.history.catalogue)).astype(float)
    popularity = np.tile(times, (len(histories.given), 1))
    return ranked + ranking_scores(f"{split}/most_popular", popularity, histories.given, histories.held_out)


def plot(inputs: TaskInputs) -> Panels:
    """Users' histories, and the first recommended items: green if they were chosen later."""
    catalogue = inputs.processor.history.catalogue
    histories = SplitHistories.of(inputs.reader, inputs.test_splits[0])
    panels = []
    for given, held_out in list(zip(histories.given, histories.held_out, strict=True))[:EXAMPLES]:
        wanted = set(held_out.tolist())
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
    metrics={"Recall@*": MetricKind(), "normalized_Recall@*": MetricKind(), "NDCG@*": MetricKind()},
    headline=("recommendation/Recall@20", "recommendation/NDCG@20", "most_popular/Recall@20"),
    forward_methods=("recommend",),
)
