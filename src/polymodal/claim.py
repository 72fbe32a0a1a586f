"""The kinds of claims that `polymodal reproduce` tests, and which recorded verdicts count.

Importing this module is cheap: no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal.errors import UserError
from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus

TO_BE_MEASURED_AGAIN = "to be measured again"
RECORDED = Path(__file__).parent / "reproduce" / "results"  # of the package's own claims
LATER = {"hashed": "where set"}  # of a field that came later, so that hashes of claims without it stay
STATISTICS = 2  # version of intervals and verdicts; results of an earlier one are to be measured again


def recorded_results() -> dict[str, dict[str, Any]]:
    """Return the recorded results of claims, by recipe, or RECIPE-CLAIM for a further one."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDED.glob("*.json"))}


def is_current(result: Mapping[str, Any]) -> bool:
    """Whether intervals and verdict of a recorded result were made by the present method."""
    return result.get("statistics") == STATISTICS


def verdict_of(result: Mapping[str, Any]) -> str:
    """Return the verdict of a recorded result that counts."""
    return result["verdict"] if is_current(result) else TO_BE_MEASURED_AGAIN


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper that `polymodal reproduce` tests: treatment against baseline, paired seeds.

    baseline, treatment and further arms are recipes that differ only in the idea. start: a recipe that is trained
    first, once a seed and for `start_budget`, whose weights all arms begin with, such as a language model that is to
    learn to see. start_weights: False for a start whose weights no arm is to begin with, as it only makes what they are
    trained on. start_makes: from the run of `start`, the corpus, a folder and the seed, the corpus that arms are
    trained on, which it writes there, such as preferences between the model's own answers. start_tests: whether arms
    are scored on that corpus, too, whose evaluation splits are then the same at every seed.
    start_scored: whether the metrics of the start itself are recorded, at the price of an evaluation a seed.
    languages: of the corpus, these only; empty means all.
    deciding: the metrics that decide, all of which have to agree, as the parts of a sentence with "and"; by default the
    first of `metrics`. margins: by how much the treatment may be worse on a deciding metric, in its own values, for a
    part of the sentence such as "and no more noise"; where there is none it has to be better. tuning: values of a
    hyper-parameter, such as {"learning_rate": (5e-4, 1e-3, 2e-3)}, of which `reproduce --tune` takes the best for each
    arm by the validation split. tuning_fraction: of the budget, for each run of the tuning. tuned_like: the arm whose
    best values a further arm takes, in place of a tuning of its own, by the further arm's label.
    budget_fractions: by label, the fraction of the budget that an arm trains for, where others have a stage that it
    has not, so that what all arms train they train for as long.
    Raises UserError for a deciding metric, or a margin, of no metric, and for values by label of an arm that is none.
    """

    sentence: str
    baseline: Any
    treatment: Any
    corpus: str
    budget: Budget
    seeds: int
    metrics: tuple[str, ...]
    further: Mapping[str, Any] = field(default_factory=dict)
    start: Any = None
    start_budget: Budget | None = None
    start_makes: Callable[[Any, Corpus, Path, int], Corpus] | None = None
    start_scored: bool = False
    start_weights: bool = True
    start_tests: bool = field(default=False, metadata=LATER)
    languages: tuple[str, ...] = ()
    paper_results: str = ""
    deciding: tuple[str, ...] = ()
    margins: Mapping[str, float] = field(default_factory=dict)
    tuning: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    tuning_fraction: float = 1.0
    tuned_like: Mapping[str, str] = field(default_factory=dict)
    budget_fractions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strange := [*({*self.deciding} - {*self.metrics}), *({*self.margins} - {*self.deciding_metrics})]:
            raise UserError(f"'{strange[0]}' is to decide a claim but is none of its metrics; write it in both places.")
        labels = {"baseline", "treatment", *self.further}
        named = {*self.budget_fractions, *self.tuned_like, *self.tuned_like.values()}
        if unknown_labels := named - labels:
            raise UserError(
                f"'{min(unknown_labels)}' is no arm of the claim; its arms are {', '.join(sorted(labels))}."
            )
        if {*self.tuned_like} & {"baseline", "treatment", *self.tuned_like.values()}:
            raise UserError("Only a further arm can be tuned like another, and only like one that is tuned itself.")

    @property
    def deciding_metrics(self) -> tuple[str, ...]:
        return self.deciding or self.metrics[:1]


@dataclass(frozen=True)
class AttackClaim(Claim):
    """A claim about attacks, which baseline, treatment and further arms are.

    victims: recipes that are trained first, each from seeds of its own. An attack knows one of them and is tried on
    all; the figures of models that it did not know are averaged. split: whose examples are attacked, at most so many.
    """

    victims: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    examples: int = 300


@dataclass(frozen=True)
class MetricClaim(Claim):
    """A claim about metrics of captions, which baseline, treatment and further arms are; nothing is trained.

    The budget is the number of images whose captions are judged; a seed draws what is exchanged in them.
    """


@dataclass(frozen=True)
class CurationClaim(Claim):
    """A claim about recipes of curation, which baseline, treatment and further arms are; nothing is trained.

    The budget is the largest number of pages that noise is put into; a seed draws it. language: of the good texts.
    """

    language: str = "en"


@dataclass(frozen=True)
class CuratedTrainingClaim(Claim):
    """A claim about recipes of curation by what a model learns from the documents that each of them makes.

    model: the recipe that is trained on them, for the budget. `start` is trained on the documents of the treatment.
    """

    model: Any = None
