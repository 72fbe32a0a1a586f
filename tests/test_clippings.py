"""CLIPPINGS: the official code's vectors, losses, clusters, links and hard negatives; orders of rows; thresholds."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora._ocr import with_ocr_errors
from polymodal.data.class_order import ClassOrder, hard_negative_groups
from polymodal.errors import UserError
from polymodal.evaluation.linking import LinkedRecords, Links, best_cut, cut, no_match_threshold, single_linkage
from polymodal.evaluation.string_similarity import jaccard_similarity, levenshtein_similarity
from polymodal.evaluation.tasks.linking import VectorLinker
from polymodal.recipes.dual_encoders.clippings import CLIPPINGS, Recipe
from polymodal.training.trainer import Paused, train

GOLDEN = {
    name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/clippings.npz").items()
}
WEIGHTS = (0.0, 0.3, 0.5, 1.0)


def method(weight: float) -> CLIPPINGS:
    return CLIPPINGS(dataclasses.replace(Recipe.tiny(), image_weight=weight, logit_scale_init=20.0), 300)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_vectors_losses_clusters_and_links_are_those_of_the_official_code(weight: float) -> None:
    model = method(weight)
    given = {name: GOLDEN[name].clone().requires_grad_() for name in ("image", "text")}
    model.embed = lambda batch: {name: F.normalize(value, dim=-1) for name, value in given.items()}
    torch.testing.assert_close(model.losses({})["contrastive"].double(), GOLDEN["contrastive"], rtol=1e-5, atol=1e-6)
    loss = model.linking_losses({"label": GOLDEN["labels"]})["supcon"]
    torch.testing.assert_close(loss, GOLDEN[f"loss/{weight}"], rtol=1e-5, atol=1e-6)
    loss.backward()
    for name, value in given.items():
        found = torch.zeros_like(value) if value.grad is None else value.grad
        torch.testing.assert_close(found, GOLDEN[f"{name}_grad/{weight}"], rtol=1e-4, atol=1e-6)
    vectors = {name: value.detach() for name, value in model.embed({}).items()}
    pooled = model.pool(vectors["image"], vectors["text"], weight)
    torch.testing.assert_close(pooled, GOLDEN[f"pooled/{weight}"], rtol=1e-5, atol=1e-6)
    groups = hard_negative_groups(pooled, GOLDEN["labels"].numpy(), 3)
    assert (groups == GOLDEN[f"groups/{weight}"].numpy()).all()
    linker, labels = VectorLinker(model, (weight,)), GOLDEN["labels"].numpy()
    for eps in (0.05, 0.2, 0.4):  # DBSCAN there
        clusters = cut(single_linkage(linker.distances(vectors, weight)), eps)
        official = GOLDEN[f"clusters/{weight}/{eps}"].numpy()
        assert ((clusters[:, None] == clusters) == (official[:, None] == official)).all()
    exemplars = np.arange(0, 18, 3)
    queries = np.setdiff1d(np.arange(18), exemplars)
    records = LinkedRecords(vectors, labels, exemplars, queries, np.ones(12, bool))
    assert Links.of(linker, records, weight).right.mean() == pytest.approx(GOLDEN[f"top1/{weight}"].item())


def test_every_batch_has_m_rows_of_a_class_and_a_class_gives_all_rows_before_it_repeats_one() -> None:
    sizes = (7, 3, 2, 6, 1)
    classes = [np.arange(10 * number, 10 * number + size) for number, size in enumerate(sizes)]
    order = ClassOrder(classes, 3, 6, seed=4)
    assert [order.length, 5 * 3] == [GOLDEN["sampler_lengths"][0].item(), 15]
    rows = np.array([order[place] for place in range(12 * 40)])
    assert (rows == [ClassOrder(classes, 3, 6, 4)[place] for place in range(12 * 40)]).all()
    batches = rows.reshape(-1, 2, 3) // 10
    assert (batches == batches[..., :1]).all()  # whole classes
    assert (batches[:, 0, 0] != batches[:, 1, 0]).all()
    assert len({tuple(np.unique(batch)) for batch in batches[::2]}) > 3  # passes differ
    for number, size in enumerate(sizes):
        visits = [order._rows(number, visit) for visit in range(-(-size // 3))]
        assert {*np.concatenate(visits).tolist()} == {*classes[number].tolist()}
    with pytest.raises(UserError, match="less than one batch of 18"):
        ClassOrder(classes, 3, 18, 0)
    groups = np.array([[0, 1, -1], [2, 3, 4]])
    hard = ClassOrder(classes, 3, 15, 0, groups)
    passes = {tuple(hard[15 * number + place] // 10 for place in range(0, 15, 3)) for number in range(9)}
    assert passes == {(0, 1, 2, 3, 4), (2, 3, 4, 0, 1)}  # confusable classes meet


def test_thresholds_are_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 12, 60) / 12
    links = Links(similarity, (similarity + 0.5 * rng.random(60) > 0.7).astype(float))
    matched = (rng.random(60) < 0.3) | (links.right > 0)

    def right(threshold: float) -> float:
        accepted = links.similarity >= threshold
        return float(np.where(matched, links.right * accepted, ~accepted).sum())

    best = max(right(threshold) for threshold in np.linspace(-0.1, 1.1, 400))
    assert right(no_match_threshold(links, matched)) == best > max(right(-1), right(2))
    labels = np.repeat(np.arange(6), 4)
    distances = pdist(rng.normal(size=(6, 5))[labels] + 0.6 * rng.normal(size=(24, 5)))
    value, height = best_cut(distances, labels)
    from sklearn.cluster import DBSCAN
    from sklearn.metrics import adjusted_rand_score

    def ari(eps: float) -> float:
        clusters = DBSCAN(eps=eps, min_samples=1, metric="precomputed").fit_predict(squareform(distances))
        return adjusted_rand_score(labels, clusters)

    assert value == pytest.approx(ari(height)) == pytest.approx(max(ari(eps) for eps in np.linspace(0.01, 5, 300)))


def test_string_similarities_by_their_definitions() -> None:
    def edits(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

    def grams(text: str) -> set[str]:
        words = [f" {word} " for word in text.split()]
        return {word[i : i + n] for word in words for n in (1, 2, 3) for i in range(len(word) - n + 1)}

    names = ["steel", "stel", "st", "ab cd"]
    for (row, a), (column, b) in itertools.product(enumerate(names), repeat=2):
        assert levenshtein_similarity(names, names)[row, column] == pytest.approx(1 - edits(a, b) / max(len(a), len(b)))
        jaccard = len(grams(a) & grams(b)) / len(grams(a) | grams(b))
        assert jaccard_similarity(names, names)[row, column] == pytest.approx(jaccard)
    rng, text = np.random.default_rng(0), "Kanora Electric Works " * 40
    assert with_ocr_errors(text, 0.0, rng) == text.strip()
    assert 0.55 < levenshtein_similarity([text], [with_ocr_errors(text, 0.4, rng)])[0, 0] < 0.8


def test_a_run_goes_on_with_the_hard_negatives_that_it_has_mined(corpus: Corpus, tmp_path: Path) -> None:
    recipe, budget = Recipe.tiny(), pm.Budget(steps=12)
    whole = train(recipe, corpus, budget).model.state_dict()
    with pytest.raises(Paused):
        train(recipe, corpus, budget, out=tmp_path / "run", until_step=10)
    assert np.load(tmp_path / "run/mined-2.npy").shape == (24, 2)
    resumed = train(recipe, corpus, budget, out=tmp_path / "run").model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "run/mined-2.npy").exists()


@pytest.mark.parametrize(("wrong", "message"), [({"m": 3}, "no multiple of --m 3"), ({"length_bucketing": 2}, "part")])
def test_what_would_part_the_records_of_a_class_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(Recipe.tiny(), **wrong)
