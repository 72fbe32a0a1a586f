"""Does the best learning rate move with the width as the rule of sizes says?

    python benchmarks/size_sweep.py [--corpus scenes]

`clip` with two blocks in both encoders, on `emoji` or another `--corpus` at 32 px, at three widths. Learning rates are
multiples of the rule's: that of the defaults times (default width / width). Printed is the loss (mean of the last
steps, over seeds) for each multiple. The rule holds where the lowest loss of every width is at about the same multiple.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics

import polymodal as pm
from polymodal.recipes.dual_encoders import clip
from polymodal.training.trainer import train

DEFAULT = clip.Recipe()
WIDTHS, MULTIPLES = (64, 128, 256), (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)


def recipe_of(width: int, learning_rate: float, batch_size: int) -> clip.Recipe:
    blocks = {"width": width, "depth": 2, "num_heads": 4}
    return dataclasses.replace(
        DEFAULT,
        image=dataclasses.replace(DEFAULT.image, **blocks),
        text=dataclasses.replace(DEFAULT.text, **blocks),
        optimizer=dataclasses.replace(DEFAULT.optimizer, learning_rate=learning_rate),
        batch_size=batch_size,
    )


def loss_of(recipe: clip.Recipe, corpus: pm.corpora.Corpus, steps: int, seeds: int) -> float:
    """Return the mean loss of the last tenth of the steps."""
    losses: list[float] = []
    for seed in range(seeds):
        of_run: list[float] = []
        train(
            recipe,
            corpus,
            pm.Budget(steps=steps),
            seed=seed,
            on_step=lambda progress, reached, step_losses, kept=of_run: kept.append(float(step_losses["contrastive"])),
        )
        losses.append(statistics.mean(of_run[-max(steps // 10, 1) :]))
    return statistics.mean(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="emoji")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--multiples", type=float, nargs="+", default=MULTIPLES)
    options = parser.parse_args()
    corpus, rate = pm.corpora.load_corpus(options.corpus), DEFAULT.optimizer.learning_rate
    print("| width | learning rate by the rule | " + " | ".join(f"x {one:g}" for one in options.multiples) + " |")
    print("|---|---|" + "---|" * len(options.multiples))
    for width in options.widths:
        ruled = rate * DEFAULT.image.width / width
        print(f"| {width} | {ruled:.2g}", end="", flush=True)
        for multiple in options.multiples:
            recipe = recipe_of(width, multiple * ruled, options.batch_size)
            print(f" | {loss_of(recipe, corpus, options.steps, options.seeds):.3f}", end="", flush=True)
        print(" |")


if __name__ == "__main__":
    main()
