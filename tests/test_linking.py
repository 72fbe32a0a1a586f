"""Record linkage: thresholds and cuts against all others, string similarities by their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from polymodal.corpora import Corpus
from polymodal.corpora._ocr import with_ocr_errors
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.linking import LinkedRecords, Links, best_cut, no_match_threshold
from polymodal.evaluation.string_similarity import jaccard_similarity, levenshtein_similarity
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks.linking import records_of, scores_of
from polymodal.recipes.dual_encoders.clippings import Recipe


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


def test_records_whose_only_repeated_class_has_no_exemplar_are_not_scored(corpus: Corpus) -> None:
    """Of four classes three have an exemplar, and the queries are those of the fourth."""
    assert corpus.label is not None
    names = np.array(corpus.raw_values(np.arange(len(corpus)), corpus.label), dtype=object)
    of_class = [np.flatnonzero(names == name)[:2] for name in sorted(set(names))]
    rows = np.concatenate([*(two[:1] for two in of_class[:3]), of_class[3]])
    assert not LinkedRecords.of(rows, names[rows].astype(str)).matched.any()
    recipe = Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    few = corpus.with_splits({**corpus.splits, "test": rows})
    inputs = TaskInputs(recipe.build(processor), processor, Reader(few, processor))
    assert records_of(inputs, "test") is None
    assert not scores_of(inputs)
