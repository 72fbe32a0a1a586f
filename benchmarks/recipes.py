"""What does the idea of each recipe cost? Whole training steps of its claim's treatment against the baseline.

Both arms of a claim have the same towers, data, batch size and seed (for dual encoders, the baseline is CLIP's loss).
Each is trained for a few steps in a process of its own, in alternation; printed are the treatment's figures, and its
overhead: the median over rounds of its seconds a step by the baseline's. Seconds count from the first step to the
last, with reading and decoding, without validation. Memory is the peak of the process.

    python benchmarks/recipes.py [--family dual_encoders] [--steps 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

from in_turn import median_ratio
from polymodal import recipes
from polymodal.claim import Claim
from polymodal.corpora.languages import in_languages
from polymodal.corpora.registry import load_mixture
from polymodal.recipes import FIRST_CLAIM
from polymodal.training import train
from polymodal.types import Budget

ARMS = ("baseline", "treatment")


def measured(name: str, arm: str, steps: int) -> dict[str, float]:
    """The cost of a short run of an arm, in this process."""
    claim = recipes.claims(name)[FIRST_CLAIM]
    corpus = load_mixture(claim.corpus)
    if claim.languages:
        corpus = in_languages(corpus, claim.languages)
    train(getattr(claim, arm), corpus, Budget(steps=3))  # decodes, and compiles what is compiled
    run = train(getattr(claim, arm), corpus, Budget(steps=steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    names = ("seconds", "examples", "parameters", "flops_an_example")
    return {label: run.record[label] for label in names} | {"peak_mib": peak}


def in_a_process(name: str, arm: str, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--arm", f"{name}:{arm}", "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} {arm}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def trains_on_its_corpus(claim: Any) -> bool:
    """Whether the arms of a claim are trained, from fresh weights and on the corpus itself."""
    return type(claim) is Claim and claim.start is None and hasattr(claim.treatment, "build")


def row(name: str, steps: int, rounds: int) -> str:
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm in ARMS:
            found[arm].append(in_a_process(name, arm, steps))
    seconds = {arm: [one["seconds"] / one["examples"] for one in costs] for arm, costs in found.items()}
    overhead = 100 * (median_ratio(seconds["treatment"], seconds["baseline"]) - 1)
    cost, base = (
        {key: statistics.median(one[key] for one in found[arm]) for key in found[arm][0]} for arm in reversed(ARMS)
    )
    return (
        f"| {name} | {1 / statistics.median(seconds['treatment']):,.0f} | {cost['parameters'] / 1e6:.2f} M "
        f"| {cost['flops_an_example'] / 1e6:,.0f} | {cost['peak_mib']:,.0f} | {overhead:+.0f} % "
        f"| {100 * (cost['flops_an_example'] / base['flops_an_example'] - 1):+.0f} % "
        f"| {cost['peak_mib'] - base['peak_mib']:+,.0f} |"
    )


def main() -> None:
    @dataclasses.dataclass
    class Options:
        family: str | None
        steps: int
        rounds: int
        arm: str | None

    parser = argparse.ArgumentParser()
    parser.add_argument("--family")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", help="measure one arm, NAME:baseline or NAME:treatment, in this process")
    options = Options(**vars(parser.parse_args()))
    if options.arm is not None:
        name, _, arm = options.arm.partition(":")
        print(json.dumps(measured(name, arm, options.steps)))
        return
    print("| recipe | examples/s | parameters | MFLOPs/example | peak MiB | seconds | FLOPs | MiB more |")
    print("|---|---|---|---|---|---|---|---|")
    for name, entry in recipes.entries().items():
        wanted = options.family in (None, entry.family)
        if wanted and entry.has_claim and trains_on_its_corpus(recipes.claims(name)[FIRST_CLAIM]):
            print(row(name, options.steps, options.rounds), flush=True)


if __name__ == "__main__":
    main()
