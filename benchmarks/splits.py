"""What a random test split hides: the methods of `make demo` on random test concepts, and without near-duplicates.

python benchmarks/splits.py [--budget 25s] [--seeds 2]

The splits of `emoji` keep gender variants, skin tones, flags, clocks and images that are almost equal together. Drawn
at random, as in many papers, test concepts have lookalikes among the training concepts, under almost the same names.
Printed are R@10 of the evaluation, where a text such as "flag" may be answered by any image that it was written for,
and how often the ten nearest hold the one image that the text was taken from.
"""

from __future__ import annotations

import argparse

import numpy as np

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.evaluation.retrieval import top
from polymodal.recipes.dual_encoders import clip, improved_clip, siglip, sparc
from polymodal.reproduce import compare
from polymodal.training import Run

METHODS = (clip, siglip, sparc, improved_clip)


def by_lot(corpus: Corpus) -> Corpus:
    """The concepts of the three splits put into new ones of the same sizes, whatever they look like."""
    names = ("train", "validation", "test")
    parts = [corpus.rows(name) for name in names]
    rows = np.random.default_rng(0).permutation(np.concatenate(parts))
    new = np.split(rows, np.cumsum([len(part) for part in parts])[:-1])
    return corpus.with_splits(dict(zip(names, new, strict=True)))


def own_found(run: Run, corpus: Corpus, most: int = 10) -> float:
    """Share of the English texts of the test split whose own image is among the nearest."""
    examples = [corpus[row] for row in corpus.rows("test")]
    texts = [(c.text, own) for own, e in enumerate(examples) for c in e["captions"] if c.language == "en"]
    images = run.embed(image=[example["image"] for example in examples])["image"]
    nearest = top(run.embed(text=[text for text, _ in texts])["text"], images, most)
    return float((nearest == np.array([[own] for _, own in texts])).any(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=pm.Budget.parse, default=pm.Budget(seconds=25))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    corpus = pm.corpora.emoji()
    metric = "test/text_to_image/R@10"
    for split, concepts in (("lookalikes kept together", corpus), ("sampled at random", by_lot(corpus))):
        comparison = compare([method.Recipe() for method in METHODS], concepts, options.budget, options.seeds)
        chance, own_chance = comparison.trials[0].scores[metric].chance, 10 / len(concepts.rows("test"))
        print(f"{split:<30} R@10 (chance {chance:.1%})   own image (chance {own_chance:.1%})")
        for arm in comparison.arms:
            found = comparison.estimate(arm, metric)
            own = np.mean([own_found(trial.run, concepts) for trial in comparison.of(arm)])
            interval = f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
            print(f"  {arm.label:<26} {interval:<26} {own:5.1%}, {own / own_chance:.1f} times chance")


if __name__ == "__main__":
    main()
