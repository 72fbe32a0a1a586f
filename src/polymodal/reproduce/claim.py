"""Is a paper's claim true here? Treatment against baseline over paired seeds, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polymodal import recipes
from polymodal.claim import RECORDED, STATISTICS, AttackClaim, Claim, CuratedTrainingClaim, CurationClaim, MetricClaim
from polymodal.corpora.languages import in_languages
from polymodal.corpora.registry import load_corpus
from polymodal.errors import UserError, unknown
from polymodal.recipes import FIRST_CLAIM
from polymodal.reproduce.attacks import compare_attacks
from polymodal.reproduce.commitment import CLAIM, commit, commitment, with_history
from polymodal.reproduce.compare import Start, compare
from polymodal.reproduce.curation import compare_curations, compare_training_on_curated
from polymodal.reproduce.curves import learning_curves
from polymodal.reproduce.display import Display
from polymodal.reproduce.metrics import compare_metrics
from polymodal.reproduce.result import Arm, ComparisonResult
from polymodal.reproduce.tuning import check_grid
from polymodal.reproduce.tuning import tune as tuned
from polymodal.reproduce.verdict import Evidence, corrected_p_values, decide
from polymodal.training.run import write_json
from polymodal.types import Budget


def claim_of(spec: str, name: str = FIRST_CLAIM) -> Claim:
    """One of the claims that stand beside a recipe. Raises UserError when its file makes none, or none of this name."""
    claims = recipes.claims(spec)
    if not claims:
        with_claims = ", ".join(name for name, entry in recipes.entries().items() if entry.has_claim)
        raise UserError(f"The recipe '{spec}' makes no claim to test; these do: {with_claims}.")
    if name not in claims:
        raise unknown("claim of this recipe named", name, claims)
    return claims[name]


def recorded_result(spec: str, name: str = FIRST_CLAIM) -> Path:
    """Where the package keeps the result of a claim: `NAME.json`, or `NAME-CLAIM.json` for a further one."""
    return RECORDED / (f"{spec}.json" if name == FIRST_CLAIM else f"{spec}-{name}.json")


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
    again: bool = False,
    tune: bool = False,
) -> tuple[dict[str, Any], ComparisonResult]:
    """Run a recipe's claim; writes `claim.json`, `results.json` and, for methods, `report.html` into `out`.

    What is measured is written to `committed.json` first, with a hash of the code. again: also measure a claim that was
    measured with this code. tune: first take the best of the claim's `tuning` values for each arm.

    budget, seeds: those of the claim unless given. name: of the claim, where a recipe makes several. jobs: runs at a
    time (`compare`), of a claim about methods that are trained. trust_code: of finished runs in `out`, see
    `load_run`. steps: of each arm of a claim about methods that are trained, in place of those that a budget in seconds
    would give (`timing.recorded_steps`). Returns what `claim.json` holds, and the comparison. Raises
    UserError for a claim that was measured with this code already, unless `again`.
    """
    claim = claim_of(spec, name)
    if jobs > 1 and type(claim) is not Claim:
        raise UserError(f"Only runs that train can be side by side, which '{spec}' does not compare; take --jobs 1.")
    if steps is not None and type(claim) is not Claim:
        raise UserError(f"Only runs that train have steps, which '{spec}' does not compare; leave --steps-from out.")
    if tune and type(claim) is not Claim:
        raise UserError(f"Only methods that are trained can be tuned, which '{spec}' does not compare.")
    if tune:
        check_grid(claim.tuning)
    arms = [Arm("baseline", claim.baseline), Arm("treatment", claim.treatment)]
    arms += [Arm(label, recipe) for label, recipe in claim.further.items()]
    corpus, budget, seeds = load_corpus(claim.corpus), budget or claim.budget, seeds or claim.seeds
    if claim.languages:
        corpus = in_languages(corpus, claim.languages)
    recorded = recorded_result(spec, name) if spec in recipes.entries() else None
    previous = commit(commitment(claim, budget, seeds, tune), Path(out), recorded, again)
    tuning = None
    if isinstance(claim, AttackClaim):
        comparison = compare_attacks(arms, claim, corpus, budget, seeds, out, display)
    elif isinstance(claim, MetricClaim):
        comparison = compare_metrics(arms, corpus, budget, seeds, out)
    elif isinstance(claim, CurationClaim):
        comparison = compare_curations(arms, claim, corpus, budget, seeds, out)
    elif isinstance(claim, CuratedTrainingClaim):
        comparison = compare_training_on_curated(arms, claim, corpus, budget, seeds, out, display, trust_code)
    else:
        start = _start_of(claim, budget)
        if tune:
            arms, tuning = tuned(arms, claim, corpus, budget, Path(out) / "tuning", start, trust_code)
        fractions = claim.budget_fractions
        comparison = compare(arms, corpus, budget, seeds, out, display, start, jobs, trust_code, steps, fractions)
    result = with_history(claim_record(spec, claim, comparison) | {"tuning": tuning}, Path(out), previous)
    write_json(Path(out) / CLAIM, result)
    return result, comparison


def _start_of(claim: Claim, budget: Budget) -> Start | None:
    """Return what all arms begin with, if the claim has it; budget: by default."""
    if claim.start is None:
        return None
    first = claim.start_budget or budget
    return Start(claim.start, first, claim.start_makes, claim.start_scored, claim.start_weights, claim.start_tests)


def claim_record(spec: str, claim: Claim, comparison: ComparisonResult) -> dict[str, Any]:
    """The verdict by the claim's deciding metrics, and every metric of every arm with all seeds and its difference."""
    deciding = claim.deciding_metrics
    evidence = [Evidence.of(comparison, metric, claim.margins.get(metric, 0.0), len(deciding)) for metric in deciding]
    first = evidence[0]
    corrected = corrected_p_values(comparison, claim.metrics, deciding)
    return {
        "statistics": STATISTICS,
        "recipe": spec,
        "claim": claim.sentence,
        "paper": claim.paper_results,
        **decide(evidence, len(comparison.seeds)).to_json(),
        "deciding": [one.to_json() for one in evidence],
        "metric": first.metric,
        "higher_is_better": first.higher_is_better,
        "chance": first.chance,
        "difference": first.difference._asdict(),
        "baseline": first.baseline._asdict(),
        "treatment": first.treatment._asdict(),
        "corpus": claim.corpus,
        "languages": claim.languages,
        "budget": str(comparison.budget),
        "start": str(claim.start_budget) if claim.start_budget else None,
        "start_scores": {
            name: [scores[name] for scores in comparison.start_scores]
            for name in claim.metrics
            if comparison.start_scores and all(name in scores for scores in comparison.start_scores)
        },
        "seeds": comparison.seeds,
        "secondary_comparisons": len(corrected),
        "metrics": {
            name: {arm.label: _measured(comparison, arm, name, corrected) for arm in comparison.having(name)}
            for name in claim.metrics
        },
        "units": {name: comparison.unit(name) for name in claim.metrics},
        "chances": {name: comparison.chance(name) for name in claim.metrics},
        "test_units": {name: comparison.test_units(name) for name in claim.metrics},
        "curves": learning_curves(comparison, claim.metrics),
        "cost": {arm.label: comparison.cost(arm) for arm in comparison.arms},
    }


def _measured(
    comparison: ComparisonResult, arm: Arm, name: str, corrected: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    """One metric of one arm: with its interval, at every seed, and against the baseline where that has the metric."""
    record: dict[str, Any] = comparison.estimate(arm, name)._asdict() | {"by_seed": comparison.by_seed(arm, name)}
    if comparison.arms[0] in comparison.having(name):
        record["difference"] = comparison.difference(arm, name)._asdict()
        record["copy_of_baseline"] = comparison.is_copy(arm)
    if (name, arm.label) in corrected:
        record["p_holm"] = corrected[name, arm.label]
    return record
