"""Keep sentences whose perplexity is in an interval: what is lower is formulaic, what is higher is no sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from polymodal.curation.ngrams import NGramModel

Perplexity = Callable[[Sequence[str]], Sequence[float]]
"""Perplexity of each text by a language model, such as `hub_language_models.CausalPerplexity`."""

MAX_FITTED = 20_000  # sentences that an n-gram model is fitted on


def cross_fitted_perplexities(sentences: Sequence[str], pieces: int = 4000) -> list[float]:
    """Return the perplexity of each sentence by an n-gram model of the other half of them, every second one.

    It stands in for a pretrained language model: fitted on the sentence itself, it would call everything likely.
    """
    values = [0.0] * len(sentences)
    for part in (0, 1):
        others = list(sentences[1 - part :: 2])
        if not others:
            return [1.0] * len(sentences)
        model = NGramModel.fit(others[:: -(-len(others) // MAX_FITTED)], pieces)
        values[part::2] = [model.perplexity(sentence) for sentence in sentences[part::2]]
    return values


def in_interval(
    values: Float[np.ndarray, " values"], low: float, high: float, quantile: float = 0.0
) -> Bool[np.ndarray, " values"]:
    """Return which values are in [low, high]; with a quantile, between it and its counterpart from above instead.

    Thresholds of the paper belong to its models; quantiles stand in for them where the models are others.
    """
    if quantile and len(values):
        low, high = np.quantile(values, (quantile, 1 - quantile), method="lower").tolist()
    return (values >= low) & (values <= high)
