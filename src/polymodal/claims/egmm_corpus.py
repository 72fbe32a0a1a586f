"""The claim of `egmm_corpus`, for `polymodal reproduce egmm_corpus`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from polymodal.claim import Claim
from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.corpora.zipf_emoji import changed
from polymodal.curation.annotation import expected_purity, simulated_answers
from polymodal.curation.concepts import CollectedImage, Concept, without_copies
from polymodal.curation.perceptual_hash import both_hashes
from polymodal.evaluation.cultural_gap import GENERAL
from polymodal.modalities import Category, Image, Modality, Text
from polymodal.modalities.image import encoded, open_image
from polymodal.modalities.image_modes import to_rgb
from polymodal.modalities.text import stored_texts
from polymodal.recipes.dual_encoders.egmm_corpus import Recipe
from polymodal.training.run import Run
from polymodal.types import Budget

PAIRS = 200  # n, of each arm
DEFECTS, ERROR_RATE = 0.4, 0.1  # e of the raw pairs; a of the annotators
# Of four defects two have the image of another concept, one has a text that is the category alone, one is a copy.
KINDS = ("wrong image", "category alone", "wrong image", "copy")
RIGHT, MAX_DISTANCE = "right", 4
ARMS = ("validated", "one pass", "unvalidated", "at random")


@dataclass(frozen=True)
class RawPair:
    """A pair as it is collected. row: of the image, which of a copy is mirrored and compressed.

    Where the text is the category alone, it is another image of the concept: turned, smaller, on another background.
    """

    concept: str
    row: int
    texts: tuple[str, ...]
    kind: str = RIGHT

    def image(self, corpus: Corpus) -> bytes:
        stored: bytes = corpus.raw(self.row, "image")
        if self.kind == "category alone":
            return changed(stored, np.random.default_rng(self.row))
        return mirrored(to_rgb(corpus.value(self.row, "image"))) if self.kind == "copy" else stored


def mirrored(image: PILImage.Image) -> bytes:
    return encoded(open_image(encoded(ImageOps.mirror(image), "JPEG", quality=60)))


def raw_pairs(corpus: Corpus, rng: np.random.Generator) -> list[RawPair]:
    """Return a right pair of each cultural concept, and as many defective ones that they are the fraction e of all."""
    train = corpus.rows("train")
    cultural = [row for row in train.tolist() if corpus.raw(row, "culture") != GENERAL]
    right = [
        RawPair(corpus.raw(row, "concept"), row, tuple(one.text for one in corpus.value(row, "captions")))
        for row in cultural
    ]
    count, pairs = round(DEFECTS / (1 - DEFECTS) * len(right)), [*right]
    for number, place in enumerate(rng.permutation(len(right))[:count].tolist()):
        pair, kind = right[place], KINDS[number % len(KINDS)]
        if kind == "wrong image":
            other = right[(place + int(rng.integers(1, len(right)))) % len(right)]
            pairs.append(replace(pair, row=other.row, kind=kind))
        else:
            category = corpus.raw(pair.row, "category").lower()
            pairs.append(replace(pair, texts=(category,) if kind == "category alone" else pair.texts, kind=kind))
    return pairs


@dataclass(frozen=True)
class Checked:
    """Raw pairs after both steps. accepted: by how many annotators in turn, 0 for what cleaning dropped."""

    pairs: list[RawPair]
    cleaned: np.ndarray
    accepted: np.ndarray

    def counts(self) -> dict[str, Any]:
        """Return what the steps dropped of each kind, purities beside the formula, and answers a validated pair."""
        right = np.array([pair.kind == RIGHT for pair in self.pairs])
        kinds = np.array([pair.kind for pair in self.pairs])
        purity = {"raw": right.mean(), "cleaned": right[self.cleaned].mean()}
        purity |= {f"{n} passes": right[self.accepted >= n].mean() for n in (1, 2)}
        expected = {f"{n} passes": expected_purity(float(purity["cleaned"]), ERROR_RATE, n) for n in (1, 2)}
        validated = int((self.accepted >= 2).sum())
        return {
            "purity": {name: float(value) for name, value in purity.items()},
            "expected purity": expected,
            "collected": dict(Counter(kinds.tolist())),
            "dropped by hashes": dict(Counter(kinds[~self.cleaned].tolist())),
            "validated": dict(Counter(kinds[self.accepted >= 2].tolist())),
            "answers a validated pair": 2 * int(self.cleaned.sum()) / max(validated, 1),
        }


def check(pairs: Sequence[RawPair], corpus: Corpus, rng: np.random.Generator) -> Checked:
    """Drop copies by perceptual hashes; then each of two annotators judges every pair that is left."""
    collected = [
        CollectedImage(place, Concept(pair.concept), both_hashes(_opened(pair.image(corpus))))
        for place, pair in enumerate(pairs)
    ]
    left = np.array(sorted(one.row for one in without_copies(collected, MAX_DISTANCE)[0]))
    cleaned = np.isin(np.arange(len(pairs)), left)
    kinds = np.array([pair.kind for pair in pairs])
    authentic, coherent = kinds != "wrong image", kinds != "category alone"
    accepted, so_far = np.zeros(len(pairs), dtype=int), cleaned
    for _ in range(2):
        answers = simulated_answers(authentic, coherent, ERROR_RATE, rng)
        so_far = so_far & answers[0] & answers[1]
        accepted += so_far
    return Checked([*pairs], cleaned, accepted)


def _opened(data: bytes) -> PILImage.Image:
    return to_rgb(Image().decode(data))


def chosen_pairs(checked: Checked, rng: np.random.Generator) -> dict[str, list[RawPair]]:
    """Return n pairs of each arm: of the same concepts, one of each, but of those at random."""
    by_concept = defaultdict[str, list[int]](list)
    for place, pair in enumerate(checked.pairs):
        by_concept[pair.concept].append(place)
    having = [name for name, places in by_concept.items() if checked.accepted[places].max() >= 2]
    concepts = [having[place] for place in rng.permutation(len(having))[:PAIRS].tolist()]

    def one_each(passes: int) -> list[RawPair]:
        places = [[one for one in by_concept[name] if checked.accepted[one] >= passes] for name in concepts]
        return [checked.pairs[some[int(rng.integers(len(some)))]] for some in places]

    at_random = rng.permutation(len(checked.pairs))[:PAIRS].tolist()
    arms = (one_each(2), one_each(1), one_each(0), [checked.pairs[place] for place in at_random])
    return dict(zip(ARMS, arms, strict=True))


def _with_cultural_pairs(run: Run, corpus: Corpus, folder: Path, seed: int) -> Corpus:
    """Write the general training pairs, and those of each arm with its name as status."""
    rng = np.random.default_rng(seed)
    checked = check(raw_pairs(corpus, rng), corpus, rng)
    arms = chosen_pairs(checked, rng)

    def rows() -> Iterator[dict[str, Any]]:
        for row in corpus.rows("train").tolist():
            if corpus.raw(row, "culture") == GENERAL:
                values = {name: corpus.raw(row, name) for name in ("image", "captions", "concept")}
                yield {"key": corpus.key(row), "split": "train", "status": None, **values}
        for arm, pairs in arms.items():
            for number, pair in enumerate(pairs):
                values = {"image": pair.image(corpus), "captions": stored_texts(*pair.texts), "concept": pair.concept}
                yield {"key": f"{arm}/{number}", "split": "train", "status": arm, **values}

    counts = checked.counts() | {
        f"{what} of {arm}": value
        for arm, pairs in arms.items()
        for what, value in (
            ("concepts", len({pair.concept for pair in pairs})),
            ("kinds", dict(Counter(pair.kind for pair in pairs))),
        )
    }
    concept = corpus.columns["concept"]
    columns: dict[str, Modality] = {
        "image": Image(), "captions": Text({"en": 1.0}), "concept": concept, "status": Category(ARMS),
    }  # fmt: skip
    about = About("cultural_pairs", "general and cultural pairs", corpus.about.license, corpus.name, ("image", "text"))
    return save_corpus(folder, about, columns, rows(), made=lambda: {"counts": counts})


_arm = Recipe(word_dropout=0.0)  # of names of one or two words
_base = replace(_arm, cultures=(GENERAL,))
claim = Claim(
    sentence="As many pairs of as many concepts teach the names of a culture better where two annotators have "
    "validated them.",
    baseline=replace(_arm, pairs=("unvalidated",)),
    treatment=replace(_arm, pairs=("validated",)),
    further={
        "one pass": replace(_arm, pairs=("one pass",)),
        "unvalidated at random": replace(_arm, pairs=("at random",)),
    },
    start=_base,
    start_budget=Budget(steps=450),
    start_makes=_with_cultural_pairs,
    start_scored=True,
    corpus="emoji_cultures",
    budget=Budget(steps=300),
    seeds=5,
    metrics=(
        "test/zero_shot_culture/top-1",
        "test/zero_shot_culture/top-5",
        "test/zero_shot_culture/Food & Drink/top-1",
        "test/zero_shot_culture/Travel & Places/top-1",
        "test/culture_prototypes/top-1",
        "test/zero_shot_general/top-1",
        "test/cultural_gap/top-1",
    ),
    tuning={"learning_rate": (5e-4, 2e-3)},
    tuning_fraction=0.5,
    tuned_like={"one pass": "treatment", "unvalidated at random": "baseline"},
    paper_results="zero-shot CLIP over 313 concepts: top-1 21.2 %, top-5 36.4 %; nothing is trained",
)
