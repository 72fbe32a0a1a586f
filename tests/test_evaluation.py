"""Metrics against brute force, chance levels against simulation, intervals against their promise."""

import importlib

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from polymodal.data.processor import fit_processor
from polymodal.evaluation.classification import (
    area_under_curve,
    balanced_accuracy,
    linear_probe,
    prompt_ensemble,
    zero_shot,
)
from polymodal.evaluation.embeddings import PairedTest
from polymodal.evaluation.evaluate import validation
from polymodal.evaluation.retrieval import (
    chance_median_rank,
    chance_recall,
    chance_reciprocal_rank,
    ranks,
    retrieval_scores,
    top,
)
from polymodal.evaluation.statistics import Score, aggregate_seeds, paired_difference
from polymodal.evaluation.tasks.grounding import intersection_over_union, region_cells, segment
from polymodal.recipes.dual_encoders import clip


def unit_vectors(count, dim, seed):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_ranks_equal_sorting():
    queries, candidates = unit_vectors(20, 5, 0), unit_vectors(30, 5, 1)
    rng = np.random.default_rng(0)
    relevant = [rng.choice(30, size=rng.integers(1, 5), replace=False) for _ in range(20)]
    found = ranks(queries, candidates, relevant)
    for query, right, rank in zip(queries, relevant, found, strict=True):
        order = (candidates @ query).argsort(descending=True).tolist()
        assert rank == 1 + min(order.index(place) for place in right)


def test_a_collapsed_embedding_ranks_last():
    same = torch.ones(1, 4).expand(10, 4)
    assert ranks(same, same, [np.array([place]) for place in range(10)]).tolist() == [10] * 10


def test_scores_by_hand():
    found, unit = np.array([1, 2, 11, 1]), np.array([0, 0, 1, 2])
    scores = {s.name: s for s in retrieval_scores("x", found, [np.array([0])] * 4, 20, unit)}
    assert scores["x/R@1"].clusters.tolist() == [0.5, 0, 1]
    assert scores["x/R@1"].value == pytest.approx(0.5)
    assert scores["x/R@10"].value == pytest.approx(2 / 3)
    assert scores["x/MRR"].clusters.tolist() == pytest.approx([0.75, 1 / 11, 1])
    assert scores["x/median_rank"].value == 1.5
    assert scores["x/R@5"].chance == pytest.approx(5 / 20)


def test_chance_levels_equal_random_orders():
    rng = np.random.default_rng(0)
    counts, candidates = np.array([1, 1, 2, 5]), 40
    simulated = np.array([[1 + rng.permutation(candidates)[:m].min() for m in counts] for _ in range(6000)])
    for k in (1, 5, 10, 40):
        assert chance_recall(counts, candidates, k) == pytest.approx((simulated <= k).mean(), abs=0.01)
    assert chance_reciprocal_rank(counts, candidates) == pytest.approx((1 / simulated).mean(), abs=0.01)
    assert chance_median_rank(counts, candidates) == pytest.approx(np.median(simulated), abs=1)
    assert chance_median_rank(np.array([1]), 101) == 51


def test_top_is_best_first_and_no_longer_than_the_candidates():
    queries, candidates = unit_vectors(2, 4, 0), unit_vectors(3, 4, 1)
    found = top(queries, candidates, 5)
    assert found.shape == (2, 3)
    assert found[0].tolist() == (candidates @ queries[0]).argsort(descending=True).tolist()


def test_several_captions_and_shared_captions_count_as_right():
    images = torch.eye(3)
    texts = ["a cat", "pet", "a dog", "pet"]  # the first and the second image are both a pet
    vectors = torch.stack([images[0], images[1], images[1], images[1]])
    test = PairedTest(np.arange(3), images, texts, vectors, np.array([0, 0, 1, 1]))
    found = {s.name: s.value for s in test.text_to_item("t2i")}
    assert found["t2i/R@1"] == 1  # "pet" of the first image finds the second, which is a pet as well
    found = {s.name: s for s in test.item_to_text("i2t")}
    assert len(found["i2t/R@1"].clusters) == 2  # the third image has no caption to find
    assert found["i2t/R@1"].value == 1


def test_balanced_accuracy_weighs_classes_alike():
    labels, predicted = np.array([0] * 90 + [1] * 10), np.zeros(100, dtype=int)
    score = balanced_accuracy("x", predicted, labels)
    assert score.value == pytest.approx(0.5)
    assert score.chance == 0.5


def test_zero_shot_and_prompt_ensemble():
    prompts = [[[1.0, 0.0], [0.9, 0.1]], [[0.0, 1.0]], [[-1.0, 0.0]]]
    classes = prompt_ensemble([torch.tensor(vectors) for vectors in prompts])
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(3))
    images = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 0.0]]), dim=1)
    score = zero_shot("x", images, np.array([0, 1, 1]), classes)
    assert score.chance == 0.5  # only classes that occur are offered
    assert score.value == pytest.approx((1 + 0.5) / 2)


def test_linear_probe_finds_what_is_linear():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 6))
    labels = (values[:, 0] + values[:, 1] > 0).astype(int)
    probe = linear_probe((values[:200], labels[:200]), (values[200:250], labels[200:250]))
    assert balanced_accuracy("x", probe.predict(values[250:]), labels[250:]).value > 0.85


def test_segmentation_puts_names_where_their_patches_are():
    patches = torch.zeros(16, 2)
    patches.reshape(4, 4, 2)[:, :2, 0] = 1
    patches.reshape(4, 4, 2)[:, 2:, 1] = 1
    labels = segment(patches, torch.eye(2), 8, 8)
    assert (labels[:, :3] == 0).all()
    assert (labels[:, 5:] == 1).all()
    left = np.zeros((8, 8), dtype=bool)
    left[:, :4] = True
    assert intersection_over_union((labels == 0).numpy(), left) > 0.8
    assert region_cells((0, 0, 4, 8), (8, 8), 4) == (0, 0, 2, 4)
    assert region_cells((7, 7, 8, 8), (8, 8), 4) == (3, 3, 4, 4)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = Score("x", rng.normal(0.4, 1, size=100)).estimate()
        covered += low <= 0.4 <= high
    assert 0.9 <= covered / 200 <= 0.99


@pytest.mark.parametrize(("seeds", "further_arms"), [(1, 0), (2, 3), (3, 2), (5, 0)])
def test_paired_interval_covers_the_true_difference(seeds, further_arms):
    """Seeds shift every unit of an arm together; units are hard or easy for all arms."""
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(200):
        difficulty = rng.normal(0, 1, 80)
        spread = 0.0 if seeds == 1 else 0.05

        def arm(shift, difficulty=difficulty, spread=spread):
            by_seed = [difficulty + shift + rng.normal(0, spread) + rng.normal(0, 0.3, 80) for _ in range(seeds)]
            return [Score("x", units) for units in by_seed]

        treatment, baseline, *others = (arm(shift) for shift in (0.1, 0.0, *[0.3] * further_arms))
        value, low, high = paired_difference(treatment, baseline, others)
        covered += low <= 0.1 <= high
        alone = aggregate_seeds(treatment, [baseline, *others])
        widths.append((high - low, alone.high - alone.low))
        assert low <= value <= high
    assert covered / 200 >= 0.9
    paired, unpaired = np.mean(widths, axis=0)
    assert paired < unpaired  # the difficulty of the units cancels in the paired difference


def test_an_arm_that_collapses_now_and_then_says_nothing_about_the_others():
    rng = np.random.default_rng(0)

    def arm(*values):
        return [Score("x", rng.normal(value, 0.1, 200)) for value in values]

    baseline, treatment, alike, collapsing = (
        arm(0.6, 0.61, 0.6),
        arm(0.62, 0.61, 0.63),
        arm(0.5, 0.52, 0.5),
        arm(0.1, 0.6, 0.4),
    )
    alone = paired_difference(treatment, baseline)
    assert paired_difference(treatment, baseline, [collapsing]) == alone
    assert paired_difference(treatment, baseline, [alike]) != alone
    assert paired_difference(treatment, baseline, [collapsing, alike]) == paired_difference(
        treatment, baseline, [alike]
    )


def test_values_of_one_unit_are_drawn_together():
    values, unit = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]), np.array([7, 7, 7, 2, 2, 9])
    score = Score.per_cluster("a/b", values, unit, 0.3)
    assert score.value == pytest.approx(values.mean())
    assert score.clusters.tolist() == pytest.approx([0.5, 2 / 3, 0.0])
    assert score.weights is not None
    assert score.weights.tolist() == [2.0, 3.0, 1.0]
    apart = Score("a/b", np.repeat(values, 50))
    together = Score.per_cluster("a/b", np.repeat(values, 50), np.repeat(np.arange(6), 50))
    widths = [high - low for _, low, high in (apart.estimate(), together.estimate())]
    assert widths[1] > 3 * widths[0], "six units say less than three hundred"


def test_scores_survive_json():
    score = Score("a/b", np.array([0.1, 1.0]), 0.5, False, "median")
    again = Score.from_json(score.to_json())
    assert again.clusters.tolist() == score.clusters.tolist()
    assert (again.name, again.chance, again.higher_is_better, again.statistic) == ("a/b", 0.5, False, "median")


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    likely = rng.random((200, 3)).round(1) + 0.3 * np.eye(3)[labels]
    likely /= likely.sum(1, keepdims=True)
    score = area_under_curve("", likely, labels)
    assert score.value == pytest.approx(roc_auc_score(labels, likely, multi_class="ovr", average="macro"))
    assert area_under_curve("", np.eye(3)[labels], labels).value == pytest.approx(1.0)
    assert area_under_curve("", np.zeros((200, 3)), labels).value == pytest.approx(0.5)


def test_units_are_the_means_and_medians_of_their_queries():
    rng = np.random.default_rng(0)
    found, unit = rng.integers(1, 50, 200), rng.choice([2, 3, 7, 11, 40], 200)
    scores = {score.name: score.clusters for score in retrieval_scores("a", found, [np.array([0])] * 200, 50, unit)}
    parts = [found[unit == number] for number in np.unique(unit)]
    np.testing.assert_allclose(scores["a/R@5"], [(part <= 5).mean() for part in parts])
    np.testing.assert_allclose(scores["a/MRR"], [(1 / part).mean() for part in parts])
    np.testing.assert_allclose(scores["a/median_rank"], [np.median(part) for part in parts])


def test_a_probe_is_the_regression_that_an_exact_solver_finds():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=400)
    vectors = (rng.normal(size=(5, 32))[labels] / 2 + rng.normal(size=(400, 32))).astype(np.float32)
    probe = linear_probe((vectors[:300], labels[:300]), (vectors[300:], labels[300:]), strengths=[0.1])
    standardized = StandardScaler().fit(vectors[:300]).transform(vectors)
    exact = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-8, class_weight="balanced")
    exact.fit(standardized[:300], labels[:300])
    np.testing.assert_allclose(probe.predict_proba(vectors), exact.predict_proba(standardized), atol=1e-4)


def test_of_a_large_validation_split_a_part_is_looked_at(small_emoji, monkeypatch):
    recipe = clip.Recipe()
    processor = fit_processor(recipe, small_emoji)
    model = recipe.build(processor).eval()
    whole = validation(small_emoji)(model, processor)
    monkeypatch.setattr(importlib.import_module("polymodal.evaluation.evaluate"), "MAX_VALIDATION_EXAMPLES", 8)
    part = validation(small_emoji)(model, processor)
    assert part.keys() == whole.keys()
    recall = "validation/text_to_image/R@10"
    assert (part[recall].value, whole[recall].value < 1) == (1, True), "of eight images, the right one is among ten"
