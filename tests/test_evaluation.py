"""Metrics against brute force, chance levels against simulation, intervals against their promise."""

import importlib

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from polymodal.data.processor import fit_processor
from polymodal.evaluation.classification import (
    area_under_curve,
    balanced_accuracy,
    linear_probe,
    predicted_classes,
    prompt_ensemble,
    zero_shot,
)
from polymodal.evaluation.embeddings import PairedTest
from polymodal.evaluation.evaluate import validation
from polymodal.evaluation.multiple_comparisons import holm
from polymodal.evaluation.retrieval import (
    chance_median_rank,
    chance_recall,
    chance_reciprocal_rank,
    ranks,
    retrieval_scores,
    top,
)
from polymodal.evaluation.seeds import aggregate_seeds, are_copies, paired_difference, seed_and_unit_errors
from polymodal.evaluation.statistics import Score
from polymodal.evaluation.tasks.grounding import intersection_over_union, region_cells, segment
from polymodal.evaluation.tasks.paired_retrieval import _identity
from polymodal.evaluation.tasks.recommendation import ranking_scores
from polymodal.modalities.table import TableRow
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
    assert score.chance == pytest.approx(1 / 3)  # classes that do not occur are offered as well
    assert score.value == pytest.approx((1 + 0.5) / 2)
    away = torch.tensor([[1.0, 0.2], [-1.0, 0.1], [1.0, 0.0]])
    assert zero_shot("x", away, np.array([0, 1, 1]), classes).value == pytest.approx(0.5), "the absent class is taken"


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


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_paired_interval_covers_the_true_difference(seeds):
    """Seeds shift every unit of an arm together; units are hard or easy for all arms."""
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(200):
        difficulty = rng.normal(0, 1, 80)
        spread = 0.0 if seeds == 1 else 0.05

        def arm(shift, difficulty=difficulty, spread=spread):
            by_seed = [difficulty + shift + rng.normal(0, spread) + rng.normal(0, 0.3, 80) for _ in range(seeds)]
            return [Score("x", units) for units in by_seed]

        treatment, baseline = (arm(shift) for shift in (0.1, 0.0))
        value, low, high = paired_difference(treatment, baseline)
        covered += low <= 0.1 <= high
        alone = aggregate_seeds(treatment)
        widths.append((high - low, alone.high - alone.low))
        assert low <= value <= high
    assert covered / 200 >= 0.93
    if seeds != 2:  # where the quantile of one degree of freedom outweighs all
        paired, unpaired = np.mean(widths, axis=0)
        assert paired < unpaired  # the difficulty of the units cancels in the paired difference


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


def by_leaving_out(value, count):
    """Clusters as the jackknife has them. value: of the units that remain."""
    every = np.arange(count)
    left_out = np.array([value(every[every != unit]) for unit in every])
    return value(every) - (count - 1) * (left_out - left_out.mean())


def test_units_of_balanced_accuracy_are_those_of_leaving_out():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (40, 20, 10))
    predicted = np.where(rng.random(70) < 0.6, labels, 0)
    units = balanced_accuracy("", predicted, labels).clusters
    left_out = by_leaving_out(lambda rest: balanced_accuracy("", predicted[rest], labels[rest]).value, 70)
    assert np.corrcoef(units, left_out)[0, 1] > 0.99
    assert units.std() == pytest.approx(left_out.std(), rel=0.06)


def test_units_of_an_area_are_its_influence_on_both_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (50, 30, 20))
    likely = np.eye(3)[labels] + rng.normal(size=(100, 3)).round(1)
    units = area_under_curve("", likely, labels).clusters
    left_out = by_leaving_out(lambda rest: area_under_curve("", likely[rest], labels[rest]).value, 100)
    assert np.corrcoef(units, left_out)[0, 1] > 0.99
    assert units.std() == pytest.approx(left_out.std(), rel=0.05)


def test_two_errors_are_counted_each_with_its_own_quantile():
    rng = np.random.default_rng(0)
    ours, theirs = ([Score("x", rng.normal(shift, 1, 40)) for shift in (0.2, 0.5, 0.9)] for _ in range(2))
    differences = np.array([one.value - other.value for one, other in zip(ours, theirs, strict=True)])
    units = np.mean([one.clusters - other.clusters for one, other in zip(ours, theirs, strict=True)], axis=0)
    seeds, tests = (stats.t.ppf(0.975, len(one) - 1) * stats.sem(one) for one in (differences, units))
    value, low, high = paired_difference(ours, theirs)
    assert value == pytest.approx(differences.mean())
    assert high - value == pytest.approx(np.hypot(seeds, tests))
    assert value - low == pytest.approx(high - value)
    p_value = seed_and_unit_errors(ours, theirs).p_value()
    _, low, high = paired_difference(ours, theirs, level=1 - p_value)
    assert min(abs(low), abs(high)) < 1e-3, "the interval of that level just touches zero"


def test_arms_say_nothing_about_the_spread_of_each_other():
    still, moving = ([Score("x", np.full(9, value)) for value in values] for values in ((0.5,) * 3, (0.1, 0.5, 0.9)))
    assert aggregate_seeds(still) == (0.5, 0.5, 0.5)
    assert paired_difference(still, still) == (0, 0, 0)
    assert are_copies(still, still)
    assert not are_copies(moving, still)
    assert paired_difference(moving, still).low < -0.4


def test_the_correction_of_holm_is_that_of_its_paper():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}


def test_vectors_that_are_no_numbers_find_nothing():
    queries, candidates = unit_vectors(10, 4, 0), unit_vectors(10, 4, 1)
    relevant = [np.array([place]) for place in range(10)]
    broken = torch.full_like(queries, torch.nan)
    assert ranks(broken, candidates, relevant).tolist() == [10] * 10
    assert ranks(queries, broken, relevant).tolist() == [10] * 10
    one = candidates.clone()
    one[3] = torch.nan
    found = ranks(queries, one, relevant)
    assert found[3] == 10, "the query of a broken candidate"
    assert (found[np.arange(10) != 3] > 1).all(), "a broken candidate stands before all others"
    assert 3 not in top(queries, one, 9)


def test_predictions_that_are_no_numbers_are_wrong():
    labels = np.array([0, 0, 1, 1])
    broken = torch.full((4, 3), torch.nan)
    assert zero_shot("", broken, labels, torch.eye(3)).value == 0
    assert predicted_classes(broken.numpy()).tolist() == [-1] * 4
    likely = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7]])
    assert area_under_curve("", likely, labels).value == 1
    likely[0] = np.nan
    assert area_under_curve("", likely, labels).value == pytest.approx((0.5 + 0.5) / 2)
    assert area_under_curve("", np.full((4, 2), np.nan), labels).value == 0
    vectors = np.random.default_rng(0).normal(size=(40, 3)) + np.repeat([[0], [3]], 20, axis=0)
    known = np.repeat([0, 1], 20)
    vectors[[0, 30]] = np.nan
    probe = linear_probe((vectors, known), (vectors, known))
    predicted = probe.predict(vectors)
    assert predicted[[0, 30]].tolist() == [-1, -1]
    assert (predicted == known).mean() > 0.85
    nothing = linear_probe((np.full((4, 3), np.nan), labels), (np.full((4, 3), np.nan), labels))
    assert nothing.predict(np.zeros((2, 3))).tolist() == [-1, -1]


def test_recommendations_that_are_no_numbers_are_not_found():
    known, wanted = [np.array([0])], [np.array([1, 2])]
    found = {s.name: s.value for s in ranking_scores("", np.full((1, 8), np.nan), known, wanted)}
    assert set(found.values()) == {0}
    found = {s.name: s.value for s in ranking_scores("", np.array([[9.0, np.nan, 5, 4, 3, 2, 1, 0]]), known, wanted)}
    assert found["/Recall@10"] == 0.5


def test_chance_counts_units_as_the_score_does():
    """One unit of 30 easy queries, and three of one hard query."""
    unit = np.r_[np.zeros(30, int), 1, 2, 3]
    relevant = [np.arange(15)] * 30 + [np.array([0])] * 3
    rng = np.random.default_rng(0)
    values = []
    for _ in range(400):
        found = np.array([1 + rng.permutation(20)[: len(right)].min() for right in relevant])
        values.append([score.value for score in retrieval_scores("x", found, relevant, 20, unit)[:4]])
    chance = [score.chance for score in retrieval_scores("x", found, relevant, 20, unit)[:4]]
    np.testing.assert_allclose(np.mean(values, axis=0), chance, atol=0.03)
    assert chance[0] < 0.3 < chance_recall(np.array([len(right) for right in relevant]), 20, 1)


def test_chance_of_the_top_five_of_three_is_certain():
    test = PairedTest(np.arange(3), torch.eye(3), ["a", "b", "c"], torch.eye(3), np.arange(3))
    assert [score.chance for score in test.zero_shot_concept("x")] == [pytest.approx(1 / 3), 1.0]


def test_equal_rows_of_a_table_are_the_same_query():
    row, other = (TableRow(np.array([value], np.float32), np.array([0])) for value in (1.0, 2.0))
    again = TableRow(np.array([1.0], np.float32), np.array([0]))
    assert _identity(row, 0) == _identity(again, 1) != _identity(other, 2)


def test_items_with_equal_captions_are_one_concept():
    """Seven captions on seventy items: perfect vectors score 1, and chance is one of seven."""
    vectors = torch.eye(7).repeat(10, 1)
    texts = [f"{'A' if place % 2 else 'a'} thing  {place % 7}" for place in range(70)]
    test = PairedTest(np.arange(70), vectors, texts, vectors, np.arange(70))
    top_1, top_5 = test.zero_shot_concept("test")
    assert (top_1.value, top_5.value) == (1.0, 1.0)
    assert (top_1.chance, top_5.chance) == (pytest.approx(1 / 7), pytest.approx(5 / 7))


def test_seeds_with_tests_of_their_own_have_an_interval_that_is_never_too_small():
    rng = np.random.default_rng(0)
    equal = [Score("m", rng.random(50)) for _ in range(3)]
    unequal = [equal[0], equal[1], Score("m", equal[2].clusters[:49])]
    (estimate, other), value = map(aggregate_seeds, (equal, unequal)), np.mean([score.value for score in unequal])
    assert other.value == pytest.approx(value)
    assert other.high - other.low > estimate.high - estimate.low
    shifted = [Score("m", score.clusters + 0.1) for score in unequal]
    found = paired_difference(shifted, unequal)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
