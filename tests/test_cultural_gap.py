"""The cultural gap: accuracy among equally many classes, and intervals over concepts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

import polymodal as pm
from polymodal.corpora.about import About
from polymodal.corpora.saved import save_corpus
from polymodal.evaluation.cultural_gap import concept_score, gap_score, top_k_among
from polymodal.modalities import Category, Image, Text
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders import clip


def test_accuracy_among_fewer_classes_is_the_mean_over_all_choices() -> None:
    classes, ranks = 7, np.array([1, 2, 4, 7])
    for chosen, k in itertools.product((2, 4, 7), (1, 3)):
        by_loop = [
            np.mean([sum(other < rank for other in some) < k for some in
                     itertools.combinations([one for one in range(1, classes + 1) if one != rank], chosen - 1)])
            for rank in ranks
        ]  # fmt: skip
        assert top_k_among(ranks, classes, chosen, k) == pytest.approx(by_loop)


def test_the_interval_of_the_gap_is_that_of_a_bootstrap_over_concepts() -> None:
    rng = np.random.default_rng(0)
    general = concept_score("a", (rng.random(300) < 0.6).astype(float), np.repeat(np.arange(150), 2), 0.1)
    cultural = concept_score("b", (rng.random(90) < 0.3).astype(float), np.arange(90), 0.1)
    gap = gap_score("gap", general, cultural)
    assert gap.value == pytest.approx(general.value - cultural.value)
    parts = [rng.choice(one.clusters, (4000, len(one.clusters))).mean(axis=1) for one in (general, cultural)]
    assert np.std(gap.clusters) / len(gap.clusters) ** 0.5 == pytest.approx(np.std(parts[0] - parts[1]), rel=0.05)


def test_scores_of_a_run_are_those_of_plain_loops(tmp_path: Path) -> None:
    """Three cultural and five general concepts, with two test images each; one category has a single concept."""
    rng = np.random.default_rng(0)
    cultural, general = ["karnak", "zar", "koshari"], ["dog", "cat", "car", "sun", "tree"]
    rows = [
        {"key": f"{name} {n}", "split": ("train", "test", "test")[n], "text": [{"text": name, "language": "en"}],
         "image": encoded(PILImage.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))), "concept": name,
         "culture": "general" if name in general else "egypt", "category": "food" if name == "koshari" else "other"}
        for name in (*cultural, *general) for n in range(3)
    ]  # fmt: skip
    names = {"concept": (*cultural, *general), "culture": ("general", "egypt"), "category": ("food", "other")}
    columns = {"image": Image(), "text": Text({"en": 1.0}), **{name: Category(of) for name, of in names.items()}}
    corpus = save_corpus(tmp_path / "c", About("c", "", "", "", ("image", "text")), columns, rows)
    run = pm.train(clip.Recipe.tiny(), corpus, pm.Budget(steps=2))
    scores = {score.name.removeprefix("test/"): score for score in pm.evaluate(run, corpus)}

    tests = [row for row in rows if row["split"] == "test"]
    images = run.embed(image=[row["image"] for row in tests])["image"].numpy()

    def accuracy(wanted: list[str], chosen: int, k: int, vectors: dict[str, np.ndarray]) -> float:
        hits = []
        for name, image in zip([row["concept"] for row in tests], images, strict=True):
            if name in wanted:
                better = [one for one in vectors if image @ vectors[one] > image @ vectors[name]]
                others = itertools.combinations([one for one in vectors if one != name], chosen - 1)
                hits.append(np.mean([sum(one in better for one in some) < k for some in others]))
        return float(np.mean(hits))

    def texts(of: list[str]) -> dict[str, np.ndarray]:
        return dict(zip(of, run.embed(text=of)["text"].numpy(), strict=True))

    assert scores["zero_shot_culture/top-1"].value == pytest.approx(accuracy(cultural, 3, 1, texts(cultural)))
    assert scores["zero_shot_culture/food/top-1"].value == pytest.approx(accuracy(["koshari"], 3, 1, texts(cultural)))
    assert scores["zero_shot_culture/top-5"].value == 1
    assert scores["zero_shot_general/top-1"].value == pytest.approx(accuracy(general, 3, 1, texts(general)))
    gap = scores["zero_shot_general/top-1"].value - scores["zero_shot_culture/top-1"].value
    assert scores["cultural_gap/top-1"].value == pytest.approx(gap)
    train = {row["concept"]: row["image"] for row in rows if row["split"] == "train" and row["concept"] in cultural}
    means = dict(zip(train, run.embed(image=[*train.values()])["image"].numpy(), strict=True))
    assert scores["culture_prototypes/top-1"].value == pytest.approx(accuracy(cultural, 3, 1, means))
