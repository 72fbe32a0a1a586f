"""Compare recipes of curation fairly: the same pages with the same noise in them."""

from __future__ import annotations

from pathlib import Path

from polymodal.corpora import Corpus
from polymodal.curation.noise import curation_scores
from polymodal.errors import UserError
from polymodal.reproduce.compare import Arm, Comparison
from polymodal.reproduce.metrics import score_untrained
from polymodal.types import Budget, CurationClaim


def compare_curations(
    arms: list[Arm], claim: CurationClaim, corpus: Corpus, budget: Budget, seeds: int, out: Path | str
) -> Comparison:
    """Curate as many pages as the budget has examples, at every seed; writes `results.json`."""
    if budget.examples is None:
        raise UserError("A claim about curation trains nothing; its budget is a number of pages: 40examples.")
    most = budget.examples
    return score_untrained(
        arms,
        corpus,
        budget,
        seeds,
        out,
        lambda recipe, seed: curation_scores(recipe, corpus, claim.language, most, seed),
    )
