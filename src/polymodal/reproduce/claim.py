"""Is a paper's claim true here? Treatment against baseline over paired seeds, and one of three verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polymodal import recipes
from polymodal.claim import AttackClaim, Claim, CuratedTrainingClaim, CurationClaim, MetricClaim
from polymodal.corpora.languages import in_languages
from polymodal.corpora.registry import load_corpus
from polymodal.errors import UserError, unknown
from polymodal.evaluation.statistics import Estimate
from polymodal.recipes import FIRST_CLAIM
from polymodal.reproduce.attacks import compare_attacks
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.curation import compare_curations, compare_training_on_curated
from polymodal.reproduce.curves import learning_curves
from polymodal.reproduce.display import Display
from polymodal.reproduce.metrics import compare_metrics
from polymodal.reproduce.result import Arm, ComparisonResult
from polymodal.training.run import write_json
from polymodal.types import Budget

CLAIM = "claim.json"
Verdict = Literal["supported", "not supported at this scale", "contradicted"]


def claim_of(spec: str, name: str = FIRST_CLAIM) -> Claim:
    """One of the claims that stand beside a recipe. Raises UserError when its file makes none, or none of this name."""
    claims = recipes.claims(spec)
    if not claims:
        with_claims = ", ".join(name for name, entry in recipes.entries().items() if entry.has_claim)
        raise UserError(f"The recipe '{spec}' makes no claim to test; these do: {with_claims}.")
    if name not in claims:
        raise unknown(f"claim of '{spec}'", name, claims)
    return claims[name]


def verdict(difference: Estimate, higher_is_better: bool = True) -> Verdict:
    """Supported when the whole interval lies on the claimed side of zero, contradicted when on the other."""
    low, high = (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)
    if low > 0:
        return "supported"
    return "contradicted" if high < 0 else "not supported at this scale"


def reproduce(
    spec: str,
    out: Path | str,
    budget: Budget | None = None,
    seeds: int | None = None,
    display: Display | None = None,
    name: str = FIRST_CLAIM,
    jobs: int = 1,
    trust_code: bool = False,
    steps: Mapping[str, int] | None = None,
) -> tuple[dict[str, Any], ComparisonResult]:
    """Run a recipe's claim; writes `claim.json`, `results.json` and, for methods, `report.html` into `out`.

    budget, seeds: those of the claim unless given. name: of the claim, where a recipe makes several. jobs: runs at a
    time (`compare`), of a claim about methods that are trained. trust_code: of finished runs in `out`, see
    `load_run`. steps: of each arm of a claim about methods that are trained, in place of those that a budget in seconds
    would give (`timing.recorded_steps`). Returns what `claim.json` holds, and the comparison.
    """
    claim = claim_of(spec, name)
    if jobs > 1 and type(claim) is not Claim:
        raise UserError(f"Only runs that train can be side by side, which '{spec}' does not compare; take --jobs 1.")
    if steps is not None and type(claim) is not Claim:
        raise UserError(f"Only runs that train have steps, which '{spec}' does not compare; leave --steps-from out.")
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    arms += [Arm(label, recipe) for label, recipe in claim.further.items()]
    corpus, budget, seeds = load_corpus(claim.corpus), budget or claim.budget, seeds or claim.seeds
    if claim.languages:
        corpus = in_languages(corpus, claim.languages)
    if isinstance(claim, AttackClaim):
        comparison = compare_attacks(arms, claim, corpus, budget, seeds, out, display)
    elif isinstance(claim, MetricClaim):
        comparison = compare_metrics(arms, corpus, budget, seeds, out)
    elif isinstance(claim, CurationClaim):
        comparison = compare_curations(arms, claim, corpus, budget, seeds, out)
    elif isinstance(claim, CuratedTrainingClaim):
        comparison = compare_training_on_curated(arms, claim, corpus, budget, seeds, out, display, trust_code)
    else:
        start = None
        if claim.start is not None:
            start = Start(claim.start, claim.start_budget or budget, claim.start_makes)
        comparison = compare(arms, corpus, budget, seeds, out, display, start, jobs, trust_code, steps)
    result = claim_record(spec, claim, comparison)
    write_json(Path(out) / CLAIM, result)
    return result, comparison


def claim_record(spec: str, claim: Claim, comparison: ComparisonResult) -> dict[str, Any]:
    """The verdict by the claim's first metric, and every metric's difference for every arm."""
    baseline, treatment, *_ = comparison.arms
    deciding = comparison.trials[0].scores[claim.metrics[0]]
    difference = comparison.difference(treatment, deciding.name)
    return {
        "recipe": spec,
        "claim": claim.sentence,
        "paper": claim.paper_results,
        "verdict": verdict(difference, deciding.higher_is_better),
        "metric": deciding.name,
        "higher_is_better": deciding.higher_is_better,
        "chance": deciding.chance,
        "difference": difference._asdict(),
        "baseline": comparison.estimate(baseline, deciding.name)._asdict(),
        "treatment": comparison.estimate(treatment, deciding.name)._asdict(),
        "corpus": claim.corpus,
        "languages": claim.languages,
        "budget": str(comparison.budget),
        "start": str(claim.start_budget) if claim.start_budget else None,
        "seeds": comparison.seeds,
        "metrics": {
            name: {
                arm.label: comparison.estimate(arm, name)._asdict()
                | ({"difference": comparison.difference(arm, name)._asdict()} if baseline in having else {})
                for arm in having
            }
            for name in claim.metrics
            for having in [comparison.having(name)]
        },
        "units": {name: comparison.unit(name) for name in claim.metrics},
        "curves": learning_curves(comparison, claim.metrics),
        "cost": {arm.label: comparison.cost(arm) for arm in comparison.arms},
    }
