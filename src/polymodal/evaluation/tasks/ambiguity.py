"""Ambiguity: whether uncertainty grows with the number of items that a caption fits, and whether all are retrieved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.evaluation.embeddings import main_language
from polymodal.evaluation.panels import EXAMPLES, MAX_CANDIDATES, Panels, retrieval_panels, text_panel, value_panel
from polymodal.evaluation.statistics import MetricKind, Score, group_numbers
from polymodal.evaluation.task import WITH_TEXT, Task, TaskInputs
from polymodal.evaluation.tasks.score_prediction import GROUPS, srcc
from polymodal.layers.gaussian import DiagonalGaussian
from polymodal.objectives.wasserstein import squared_wasserstein2
from polymodal.training.run import answers
from polymodal.types import Batch, Example

MIN_RELEVANT = 2  # items of a caption whose R-precision counts
ROUNDING = 1e-9  # of a variance that nothing is left of


@runtime_checkable
class EmbedsGaussians(Protocol):
    """Capability: a diagonal Gaussian per modality, comparable by 2-Wasserstein distance."""

    def embed_gaussians(self, batch: Batch) -> dict[str, DiagonalGaussian]: ...


@runtime_checkable
class FusesGaussians(Protocol):
    """Capability: the mean log sigma of each text of a batch that is fused with its item."""

    def fused_log_sigma(self, batch: Batch) -> Tensor: ...


def captions_with_items(corpus: Corpus, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Return the different captions of the main language, in alphabetical order, with the numbers of their items."""
    having, language = defaultdict(set), main_language(corpus)
    for number, example in enumerate(examples):
        for caption in example["text"]:
            if language in (None, caption.language):
                having[caption.text].add(number)
    return {text: np.array(sorted(having[text])) for text in sorted(having)}


def r_precision(
    distances: Float[np.ndarray, "queries items"], relevant: Sequence[np.ndarray]
) -> Float[np.ndarray, " queries"]:
    """Return the fraction of relevant items among the R nearest ones, where R is their number.

    An item at the same distance as a relevant one is before it; one whose distance is NaN comes last.
    """
    values = np.empty(len(relevant))
    for query, (row, numbers) in enumerate(zip(np.nan_to_num(distances, nan=np.inf), relevant, strict=True)):
        right = np.isin(np.arange(len(row)), numbers)
        values[query] = right[np.lexsort((right, row))][: len(numbers)].mean()
    return values


def _gaussians(method: nn.Module, processor: Processor, name: str, values: list) -> DiagonalGaussian:
    parts = answers(method, processor, "embed_gaussians", {name: values})
    return DiagonalGaussian.cat(part[name] for part in parts)


def partial_srcc(
    values: Float[np.ndarray, " texts"], truth: Float[np.ndarray, " texts"], given: Float[np.ndarray, " texts"]
) -> float:
    """Return Spearman's partial rank correlation of values and truth, controlling for a third variable (Kendall 1942).

    It is 0 where values are constant, or are in the order of the third variable.
    """
    of_values, of_truth, with_given = srcc(values, truth), srcc(truth, given), srcc(values, given)
    rest = (1 - of_truth**2) * (1 - with_given**2)
    return (of_values - of_truth * with_given) / rest**0.5 if rest > ROUNDING else 0.0


def _correlation(name: str, values: np.ndarray, truth: np.ndarray, given: np.ndarray | None = None) -> Score:
    """The rank correlation with its interval. given: what the partial one controls for."""

    def of(kept: np.ndarray) -> float:
        if given is None:
            return srcc(values[kept], truth[kept])
        return partial_srcc(values[kept], truth[kept], given[kept])

    groups = group_numbers(len(truth), GROUPS)
    left_out = [of(groups != group) for group in np.unique(groups)]
    return Score.from_jackknife(name, of(groups >= 0), np.array(left_out), 0.0)


def ambiguity_scores(method: nn.Module, processor: Processor, reader: Reader, split: str, item: str) -> list[Score]:
    """Return the mean log sigma of captions, its rank correlation (SRCC) with the number of items that have the
    caption, and the R-precision of captions that several items have.

    length_SRCC: of the negative number of characters, which needs no method; partial_SRCC: of the mean log sigma,
    controlling for that number. fused_*: of captions fused with one of their items at random, where the method fuses:
    the first one would correlate with the number by the order of the corpus. None of the correlations where every
    caption has as many items.
    """
    _, examples = reader.read_split(split)
    captions = captions_with_items(reader.corpus, examples)
    texts, relevant, name = list(captions), list(captions.values()), f"{split}/ambiguity"
    items = [example[item] for example in examples]
    counts = np.array([len(numbers) for numbers in relevant], dtype=float)
    text_gaussians = _gaussians(method, processor, "text", texts)
    uncertainty = {"": text_gaussians.log_sigma.mean(-1)}
    if isinstance(method, FusesGaussians):
        rng = np.random.default_rng(0)
        columns = {"text": texts, item: [items[rng.choice(numbers)] for numbers in relevant]}
        uncertainty["fused_"] = torch.cat(answers(method, processor, "fused_log_sigma", columns, 64))
    scores, sigmas = [], {kind: values.double().numpy() for kind, values in uncertainty.items()}
    if counts.min() < counts.max():
        scores = [_correlation(f"{name}/{kind}SRCC", values, counts) for kind, values in sigmas.items()]
        lengths = np.array([-len(text) for text in texts], dtype=float)
        scores.append(_correlation(f"{name}/length_SRCC", lengths, counts))
        scores += [_correlation(f"{name}/{kind}partial_SRCC", sigmas[kind], counts, lengths) for kind in sigmas]
    several = np.flatnonzero((counts >= MIN_RELEVANT) & (counts < len(items)))
    if len(several):
        item_gaussians = _gaussians(method, processor, item, items)
        queries = text_gaussians.select(torch.from_numpy(several))
        distances = squared_wasserstein2(queries, item_gaussians).numpy()
        values = r_precision(distances, [relevant[number] for number in several])
        scores.append(Score(f"{name}/R-precision", values, float(counts[several].mean() / len(items))))
    return scores + [Score(f"{name}/{kind}log_sigma", values) for kind, values in sigmas.items()]


def plot(inputs: TaskInputs) -> Panels:
    """Captions from the smallest to the largest sigma, each with the nearest items."""
    method, processor, item = inputs.method, inputs.processor, inputs.item
    assert item is not None
    rows, examples = inputs.test_examples(MAX_CANDIDATES)
    captions = captions_with_items(inputs.corpus, examples)
    texts = _gaussians(method, processor, "text", list(captions))
    log_sigma = texts.log_sigma.mean(-1)
    order = log_sigma.argsort(stable=True)
    places = np.linspace(0, len(order) - 1, min(EXAMPLES + 1, len(order))).round().astype(int)
    chosen = order[torch.from_numpy(places)]
    items = _gaussians(method, processor, item, [example[item] for example in examples])
    relevant = [list(captions.values())[number] for number in chosen.tolist()]
    queries = [
        text_panel([list(captions)[number], f"fits {len(right)}"], f"log sigma {log_sigma[number]:.3f}")
        for number, right in zip(chosen.tolist(), relevant, strict=True)
    ]
    return retrieval_panels(
        queries,
        -squared_wasserstein2(texts.select(chosen), items),
        relevant,
        lambda number, title, right: value_panel(inputs.corpus, int(rows[number]), inputs.item_column, title, right),
        f"From certain to uncertain captions, with the nearest of {len(rows)} test examples",
    )


task = Task(
    capability=EmbedsGaussians,
    requires=WITH_TEXT,
    order=15,
    score=lambda inputs: inputs.over_test_splits(ambiguity_scores, inputs.item),
    plot=plot,
    metrics={
        "*SRCC": MetricKind(is_fraction=False),
        "R-precision": MetricKind(),
        "*log_sigma": MetricKind("nats", is_fraction=False),
    },
    headline=("ambiguity/R-precision", "ambiguity/SRCC"),
    forward_methods=("embed_gaussians",),  # `answers` makes the optional one ready
)
