"""Scores of pairs of an image and a text, by whatever a method has: ITC, ITM, and the likelihood of the text.

VisualGPTScore (Lin et al. 2024) is the likelihood P(t | i) of a text under a model that writes captions. It has the
model's prior P(t) in it, so that it prefers fluent and frequent texts, whatever the image. Divided by P(t)^alpha,

    S_alpha(t, i) = (log P(t | i) - alpha log P(t)) / m,    m tokens (with the end token, without the start token),

it is the likelihood where texts of the test are as frequent as in training (alpha 0), and the pointwise mutual
information where they are all equally frequent (alpha 1). P(t) is estimated by the same model, as the mean of P(t | i)
over images that say nothing about the text. Evaluation mode leaves dropout and label smoothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float

from polymodal.constraints import UnitInterval
from polymodal.evaluation.capabilities import CanEmbed, CanScorePairs, HasLikelihood
from polymodal.evaluation.caption_prior import CaptionPrior, log_likelihoods, log_priors, prior_images, token_counts
from polymodal.evaluation.task import TaskInputs
from polymodal.training.run import answers, embed

ScoreKind = Literal["itc", "itm", "likelihood"]
GRID = np.round(np.arange(0.0, 1.0001, 0.05), 2)  # of alpha
NOISE = CaptionPrior()
Judge = Callable[[np.ndarray], np.ndarray]  # from the scores of all pairs to the value of each item
ROUNDING = 1e-6  # relative difference of scores that counts as a tie


@dataclass(frozen=True)
class MatchingScore:
    """The score of an image and a text that a method is to be used with."""

    kind: ScoreKind = "likelihood"
    """Similarity of embeddings (ITC), matching head (ITM), or the likelihood of the text (VisualGPTScore)."""
    alpha: UnitInterval | None = None
    """Exponent of the prior P(t); None: tuned on the other half of a test (cross-fitted)."""
    prior: CaptionPrior = CaptionPrior()


@runtime_checkable
class HasMatchingScore(Protocol):
    """A method that says which of its scores of an image and a text it is to be used with."""

    matching_score: MatchingScore


@dataclass(frozen=True)
class ScoredPairs:
    """Images and texts, and the pairs of them that are scored. image, text: their indices, one for each pair."""

    images: Sequence[Any]
    texts: Sequence[str]
    image: np.ndarray
    text: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Any], texts_of: Sequence[Sequence[str]]) -> ScoredPairs:
        """Pair each image with texts of its own."""
        texts = list(dict.fromkeys(text for some in texts_of for text in some))
        index = {text: place for place, text in enumerate(texts)}
        image = np.repeat(np.arange(len(images)), [len(some) for some in texts_of])
        return cls(images, texts, image, np.array([index[text] for some in texts_of for text in some], dtype=np.int64))


@dataclass(frozen=True)
class PairScorer:
    """The scores that a method has of some pairs, each computed once; a value for each pair, higher for a match."""

    inputs: TaskInputs
    pairs: ScoredPairs

    @property
    def kinds(self) -> tuple[ScoreKind, ...]:
        """What the method has."""
        method = self.inputs.method
        there: dict[ScoreKind, type] = {"itc": CanEmbed, "itm": CanScorePairs, "likelihood": HasLikelihood}
        return tuple(kind for kind, capability in there.items() if isinstance(method, capability))

    @cached_property
    def itc(self) -> Float[np.ndarray, " pairs"]:
        """Cosine similarity of the embeddings."""
        method, processor, pairs = self.inputs.method, self.inputs.processor, self.pairs
        vectors = embed(method, processor, 256, image=list(pairs.images), text=list(pairs.texts))
        image, text = (torch.as_tensor(vectors[name]).double() for name in ("image", "text"))
        return (image[pairs.image] * text[pairs.text]).sum(1).numpy()

    @cached_property
    def itm(self) -> Float[np.ndarray, " pairs"]:
        """Logit of the matching head, which is monotonic in its probability."""
        method, processor, pairs = self.inputs.method, self.inputs.processor, self.pairs
        scores = np.empty(len(pairs.image))
        for number in np.unique(pairs.image).tolist():
            places = np.flatnonzero(pairs.image == number)
            columns = {"text": [pairs.texts[n] for n in pairs.text[places]], "image": [pairs.images[number]]}
            (logits,) = answers(method, processor, "itm_logits", columns, batch_size=len(places))
            scores[places] = logits[0].double().numpy()
        return scores

    @cached_property
    def likelihood(self) -> Float[np.ndarray, " pairs"]:
        """log P(t | i), not normalized by length."""
        pairs = self.pairs
        images, texts = [pairs.images[n] for n in pairs.image], [pairs.texts[n] for n in pairs.text]
        return log_likelihoods(self.inputs, images, texts)

    @cached_property
    def lengths(self) -> Float[np.ndarray, " pairs"]:
        """m: tokens of each pair's text with the end token, without the start token."""
        return token_counts(self.inputs, self.pairs.texts)[self.pairs.text]

    def prior(self, prior: CaptionPrior) -> Float[np.ndarray, " pairs"]:
        """log P(t) of each pair's text."""
        if prior not in self._priors:
            images = prior_images(self.inputs, prior, self.pairs.images)
            self._priors[prior] = log_priors(self.inputs, self.pairs.texts, images, prior)[self.pairs.text]
        return self._priors[prior]

    @cached_property
    def _priors(self) -> dict[CaptionPrior, np.ndarray]:
        return {}

    def debiased(self, prior: CaptionPrior, alphas: Sequence[float]) -> Float[np.ndarray, "alphas pairs"]:
        """S_alpha of each alpha."""
        log_prior = self.prior(prior)
        return np.stack([(self.likelihood - alpha * log_prior) / self.lengths for alpha in alphas])


def strictly_greater(
    scores: Float[np.ndarray, "*shape"], others: Float[np.ndarray, "*shape"]
) -> Bool[np.ndarray, "*shape"]:
    """Whether scores are greater by more than rounding: ties are wrong, and so is NaN."""
    return scores - others > ROUNDING * np.maximum(1.0, np.maximum(np.abs(scores), np.abs(others)))


def cross_fitted(
    values: Float[np.ndarray, "alphas items"], grid: Sequence[float] = tuple(GRID), seed: int = 0
) -> tuple[Float[np.ndarray, " items"], tuple[float, float]]:
    """The value of each item at the alpha that is best on the other half of the items, and both alphas.

    values: of a metric, for each alpha of the grid and each item. Among equally good alphas it is the middle one.
    """
    order = np.random.default_rng(seed).permutation(values.shape[1])
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    fitted, alphas = np.empty(values.shape[1]), []
    for reported, tuned in (halves, halves[::-1]):
        means = values[:, tuned].mean(1) if len(tuned) else np.zeros(len(values))
        best = np.flatnonzero(means >= means.max() - 1e-12)
        chosen = int(best[len(best) // 2])
        fitted[reported] = values[chosen, reported]
        alphas.append(float(grid[chosen]))
    return fitted, (alphas[0], alphas[1])


def item_values(scorer: PairScorer, judge: Judge, prior: CaptionPrior = NOISE) -> dict[str, np.ndarray]:
    """Judge every score that a method has of some pairs: the values of the items, by the name of the score.

    judge: returns the value of each item, such as whether it is right. Of likelihoods: `blind` (P(t) alone), `alpha_0`,
    `alpha_1` and `alpha_cross_fitted`; `alpha` has both alphas of the halves. A method with a matching score of its own
    (`HasMatchingScore`) has it under the name "".
    """
    values: dict[str, np.ndarray] = {
        kind: judge(getattr(scorer, kind)) for kind in scorer.kinds if kind != "likelihood"
    }
    if "likelihood" in scorer.kinds:
        values |= _of_likelihood(scorer, judge, prior)
    method = scorer.inputs.method
    if isinstance(method, HasMatchingScore) and method.matching_score.kind in scorer.kinds:
        values = {"": _selected(scorer, judge, method.matching_score, values, prior), **values}
    return values


def _of_likelihood(scorer: PairScorer, judge: Judge, prior: CaptionPrior) -> dict[str, np.ndarray]:
    log_prior = scorer.prior(prior) / scorer.lengths
    normalized = scorer.likelihood / scorer.lengths
    swept = np.stack([judge(normalized - alpha * log_prior) for alpha in GRID])
    fitted, alphas = cross_fitted(swept)
    values = {"blind": judge(log_prior), "alpha_0": swept[0], "alpha_1": swept[-1], "alpha_cross_fitted": fitted}
    return values | {"alpha": np.array(alphas)}


def _selected(
    scorer: PairScorer, judge: Judge, score: MatchingScore, values: dict[str, np.ndarray], prior: CaptionPrior
) -> np.ndarray:
    """The values of the method's own score, of which most are there already."""
    if score.kind != "likelihood":
        return values[score.kind]
    if score.alpha is not None:
        return judge(scorer.debiased(score.prior, [score.alpha])[0])
    return (values if score.prior == prior else _of_likelihood(scorer, judge, score.prior))["alpha_cross_fitted"]


def sampled(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """At most so many rows, drawn at random with seed 0: evenly spaced ones would miss every other of a pair."""
    if len(rows) <= max_rows:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), max_rows, replace=False))]


def matching_protocol(inputs: TaskInputs) -> dict[str, Any]:
    """What scores of likelihoods depend on."""
    prior = CaptionPrior()
    return {
        "prior": f"mean of P(t | i) over {prior.count} images of noise, {prior.noise_mean} +- {prior.noise_std}",
        "normalized_by": "number of tokens",
        "alpha": "cross-fitted on two halves of the items, in steps of 0.05",
        "ties": "wrong",
        "rows": "drawn with seed 0 where a split has more",
    }
