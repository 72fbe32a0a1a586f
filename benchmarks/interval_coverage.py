"""Simulate how often intervals hold the truth, and how often two equal arms are said to differ.

python benchmarks/interval_coverage.py [--simulations 2000] [--kinds AUC ...]

Each simulated comparison has a fresh test set, and two arms of equal quality that err on their own. The metrics and the
intervals are the library's. At each seed a normal number is added to the score of an arm; its standard deviation is the
seed spread, on a scale on which the standard error over the test units is 0.042 (so 0.03 is less than the test units
give, and 0.3 is seven times as much).
coverage: how often the 95 % interval of one arm holds the mean of all simulated runs. false positives: how often the
interval of the paired difference does not hold zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from polymodal.evaluation.classification import area_under_curve, balanced_accuracy, macro_f1
from polymodal.evaluation.hallucination import average_precision
from polymodal.evaluation.retrieval import ranks, retrieval_scores
from polymodal.evaluation.seeds import aggregate_seeds, paired_difference
from polymodal.evaluation.statistics import Estimate, Score
from polymodal.evaluation.tasks.image_generation import frechet_distance, kernel_distance
from polymodal.evaluation.tasks.item_prototypes import adjusted_mutual_information

SEEDS = (2, 3, 5)
SPREADS = (0.0, 0.03, 0.1, 0.3)
UNIT_ERROR = 0.042
Run = Callable[[], Score]  # the score of a method on one test set, with errors of its own
Kind = Callable[[np.random.Generator], Run]  # samples a test set


def accuracy(rng: np.random.Generator) -> Run:
    difficulty = rng.normal(size=150)
    return lambda: Score("", (0.3 + 0.7 * difficulty + rng.normal(size=150) > 0).astype(float))


def questions_of_images(rng: np.random.Generator) -> Run:
    """Several questions about an image, some images with many more than others."""
    image = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    difficulty = rng.normal(size=60)[image] + 0.5 * rng.normal(size=len(image))

    def run() -> Score:
        right = 0.3 + 0.7 * difficulty + 0.5 * rng.normal(size=60)[image] + rng.normal(size=len(image)) > 0
        return Score.per_cluster("", right.astype(float), image)

    return run


def bits_per_byte(rng: np.random.Generator) -> Run:
    """A ratio of sums over texts of very different lengths."""
    size = np.round(np.exp(rng.normal(4, 0.7, 120)))
    difficulty = rng.normal(size=120)
    return lambda: Score("", 3 + difficulty + 0.5 * rng.normal(size=120), weights=size)


def entity_f1(rng: np.random.Generator) -> Run:
    """Twice the entities in common by the entities of both, of all pages together."""
    entities = rng.integers(3, 30, 60)
    difficulty = rng.normal(size=60)

    def run() -> Score:
        found = rng.binomial(entities, 1 / (1 + np.exp(-(1 + 0.5 * difficulty + 0.3 * rng.normal(size=60)))))
        guessed = found + rng.poisson(2, 60)
        both = (entities + guessed).astype(float)
        return Score("", 2 * found / both, weights=both)

    return run


def balanced(rng: np.random.Generator) -> Run:
    """Four classes, one of which is rare."""
    labels = np.repeat(np.arange(4), (90, 38, 15, 7))
    difficulty = rng.normal(size=150)

    def run() -> Score:
        right = 0.3 + 0.7 * difficulty + rng.normal(size=150) > 0
        return balanced_accuracy("", np.where(right, labels, (labels + 1) % 4), labels)

    return run


def macro_f1_of_classes(rng: np.random.Generator) -> Run:
    """Classes of unequal size."""
    labels = np.repeat(np.arange(4), (90, 38, 15, 7))
    difficulty = rng.normal(size=150)

    def run() -> Score:
        right = 0.3 + 0.7 * difficulty + rng.normal(size=150) > 0
        return macro_f1("", np.where(right, labels, rng.integers(0, 4, 150)), labels)

    return run


def area(*sizes: int) -> Kind:
    """Classes of these sizes."""

    def kind(rng: np.random.Generator) -> Run:
        labels = np.repeat(np.arange(len(sizes)), sizes)
        easy = rng.normal(size=(len(labels), len(sizes)))

        def run() -> Score:
            own = np.eye(len(sizes))[labels]
            return area_under_curve("", own + 0.7 * easy + 0.7 * rng.normal(size=easy.shape), labels)

        return run

    return kind


def precision(rng: np.random.Generator) -> Run:
    """100 scenes, each with a wrong and one or two right captions."""
    scenes = np.arange(100)
    of_right = np.concatenate([scenes, np.flatnonzero(rng.random(100) < 0.5)])
    easy, wrong_easy, right_easy = rng.normal(size=100), rng.normal(size=100), rng.normal(size=len(of_right))

    def run() -> Score:
        wrong = 0.5 * easy + 0.7 * wrong_easy + 0.5 * rng.normal(size=100)
        right = 1 + 0.5 * easy[of_right] + 0.7 * right_easy + 0.5 * rng.normal(size=len(of_right))
        return average_precision("", wrong, right, scenes, of_right)

    return run


def retrieval(metric: str) -> Kind:
    """Items of a test set, each with one or two captions, in 12 dimensions."""

    def kind(rng: np.random.Generator) -> Run:
        items = rng.normal(size=(100, 12))
        owner = np.concatenate([np.arange(100), np.flatnonzero(rng.random(100) < 0.5)])
        vague = rng.normal(size=(len(owner), 12))
        relevant = list(owner[:, None])

        def run() -> Score:
            texts = 0.7 * items[owner] + 0.8 * vague + 0.5 * rng.normal(size=vague.shape)
            found = ranks(torch.from_numpy(texts), torch.from_numpy(items), relevant)
            scores = retrieval_scores("", found, relevant, len(items), owner)
            return next(score for score in scores if score.name == f"/{metric}")

        return run

    return kind


def distance(metric: Callable[..., Score]) -> Kind:
    """100 generated images and the real ones of the same conditions, with features of 4 dimensions."""

    def kind(rng: np.random.Generator) -> Run:
        conditions = 0.5 * rng.normal(size=(100, 4))
        real = torch.from_numpy(conditions + rng.normal(size=(100, 4)))

        def run() -> Score:
            made = 1.2 * (conditions + rng.normal(size=(100, 4))) + 0.5
            return metric("", torch.from_numpy(made), real)

        return run

    return kind


def mutual_information(rng: np.random.Generator) -> Run:
    """300 items of five genres, and the likeliest of four prototypes."""
    labels = rng.integers(5, size=300)
    towards = rng.normal(size=(300, 4))

    def run() -> Score:
        likely = np.eye(4)[labels % 4] + 0.7 * towards + 0.7 * rng.normal(size=(300, 4))
        return adjusted_mutual_information("", labels, likely.argmax(1))

    return run


KINDS: dict[str, Kind] = {
    "accuracy": accuracy,
    "accuracy, questions by image": questions_of_images,
    "balanced accuracy": balanced,
    "macro F1": macro_f1_of_classes,
    "bits per byte": bits_per_byte,
    "entity F1": entity_f1,
    "AUC, 50 and 50": area(50, 50),
    "AUC, 20 and 80": area(20, 80),
    "AUC, 4 classes": area(60, 40, 30, 20),
    "average precision": precision,
    "R@10": retrieval("R@10"),
    "MRR": retrieval("MRR"),
    "median rank": retrieval("median_rank"),
    "Frechet distance": distance(frechet_distance),
    "kernel distance": distance(kernel_distance),
    "mutual information": mutual_information,
}
SLOW = {"median rank": 2, "mutual information": 2}  # these have so many times fewer simulations


class Rates(NamedTuple):
    """How often an interval held the truth, and how often a difference of zero was found to be one."""

    coverage: float
    false_positives: float


def rates(
    kind: Kind,
    spreads: Sequence[float],
    seeds: Sequence[int],
    simulations: int,
    mean: Callable[[list[Score]], Estimate] = aggregate_seeds,
    difference: Callable[[list[Score], list[Score]], Estimate] = paired_difference,
) -> dict[tuple[float, int], Rates]:
    """The rates for each spread and number of seeds; all spreads have the same runs, and fewer seeds the first ones.

    mean, difference: what gives the intervals.
    """
    rng = np.random.default_rng(0)
    pilot = [kind(rng)() for _ in range(100)]
    scale = float(np.std([score.value for score in pilot])) / UNIT_ERROR
    values: list[float] = []
    every: dict[tuple[float, int], list[tuple[Estimate, bool]]] = {(s, n): [] for s in spreads for n in seeds}
    for _ in range(simulations):
        run = kind(rng)
        arms = [[run() for _ in range(max(seeds))] for _ in range(2)]
        values += [score.value for arm in arms for score in arm]
        shifts = scale * rng.normal(size=(2, max(seeds)))
        for spread in spreads:
            first, second = (
                [replace(score, clusters=score.clusters + spread * shift) for score, shift in zip(*arm, strict=True)]
                for arm in zip(arms, shifts, strict=True)
            )
            for count in seeds:
                differs = difference(first[:count], second[:count]).differs_from_zero
                every[spread, count].append((mean(first[:count]), differs))
    truth = float(np.mean(values))
    return {
        cell: Rates(
            float(np.mean([interval.low <= truth <= interval.high for interval, _ in found])),
            float(np.mean([differs for _, differs in found])),
        )
        for cell, found in every.items()
    }


def table(kinds: Sequence[str], simulations: int) -> tuple[list[str], Rates]:
    """Markdown, and the worst of all rates."""
    headings = [f"coverage, false positives at seed spread {spread:g}" for spread in SPREADS]
    lines = [f"| metric | seeds | {' | '.join(headings)} |", "|---|---|" + "---|" * len(headings)]
    every: list[Rates] = []
    for name in kinds:
        found = rates(KINDS[name], SPREADS, SEEDS, simulations // SLOW.get(name, 1))
        for count in SEEDS:
            row = [found[spread, count] for spread in SPREADS]
            cells = [f"{100 * one.coverage:.1f} %, {100 * one.false_positives:.1f} %" for one in row]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
        print("\n".join(lines[-len(SEEDS) :]), flush=True)
        every += found.values()
    return lines, Rates(min(one.coverage for one in every), max(one.false_positives for one in every))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS], metavar="KIND")
    options: Any = parser.parse_args()
    torch.set_num_threads(1)
    lines, worst = table(options.kinds, options.simulations)
    print("\n" + "\n".join(lines))
    print(f"\nworst coverage {100 * worst.coverage:.1f} %, worst false positives {100 * worst.false_positives:.1f} %")


if __name__ == "__main__":
    main()
