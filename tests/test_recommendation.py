"""Recommendation: neighbors of items, ranking metrics, explanations, and training on real histories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from polymodal import corpora
from polymodal.corpora import Corpus
from polymodal.data.columns.history import HistoryColumn
from polymodal.data.processor import fit_processor
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation import evaluate, validation
from polymodal.evaluation.tasks.prototype_words import matching_accuracy
from polymodal.evaluation.tasks.recommendation import ranking_scores
from polymodal.modalities import History
from polymodal.modalities.history import Item
from polymodal.recipes.recommendation import dgvae
from polymodal.serving.embedding import write_embeddings
from polymodal.serving.search import search_corpus
from polymodal.training import load_run, train
from polymodal.types import Budget

ITEMS = tuple(
    Item(f"film {n}", f"{genre} story {n % 3}0s", (f"person {n % 4}",), (genre,))
    for n, genre in enumerate(["war", "love", "war", "space", "love", "space", "war", "love", "space", "war"])
)


@pytest.fixture(scope="module")
def viewers() -> Corpus:
    return corpora.viewers()


def test_neighbors_share_words_or_facts() -> None:
    processor = HistoryColumn(ITEMS)
    for source, target in processor.text_neighbors(3).T.tolist():
        assert set(ITEMS[source].text.split()) & set(ITEMS[target].text.split())
    for source, target in processor.fact_neighbors(3).T.tolist():
        assert ITEMS[source].facts == ITEMS[target].facts
    counts = torch.bincount(processor.text_neighbors(3)[0], minlength=10)
    assert (counts <= 3).all()
    alone = HistoryColumn([Item("a", "one two"), Item("b", "one two")]).fact_neighbors(5)
    assert alone.tolist() == [[0, 1], [0, 1]]


def test_ranking_metrics_of_a_known_order() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.0, 5.0] + [0.0] * 95])
    found = {s.name: s for s in ranking_scores("test", scores, [np.array([0])], [np.array([1, 4, 60])])}
    assert found["test/Recall@10"].value == pytest.approx(2 / 3)
    gain = 1 / np.log2(2) + 1 / np.log2(5)
    best = sum(1 / np.log2(place + 2) for place in range(3))
    assert found["test/NDCG@10"].value == pytest.approx(gain / best)
    assert found["test/Recall@10"].chance == pytest.approx(10 / 99)


def test_normalized_recall_divides_by_no_more_than_k() -> None:
    scores, held_out = np.arange(100, 0, -1.0)[None], [np.arange(40)]
    found = {s.name: s.value for s in ranking_scores("test", scores, [np.array([], int)], held_out)}
    assert found["test/Recall@20"] == 0.5
    assert found["test/normalized_Recall@20"] == 1.0
    assert found["test/normalized_Recall@50"] == found["test/Recall@50"] == 1.0


def test_words_match_the_items_of_their_own_prototype() -> None:
    has_word = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1]], bool)
    vocabulary = ["war", "love", "story"]
    right = [([0, 1], ["war"]), ([2, 3], ["love"])]
    assert matching_accuracy(right, vocabulary, has_word) == 1.0
    assert matching_accuracy([([0, 1], ["love"]), ([2, 3], ["war"])], vocabulary, has_word) == 0.0
    assert matching_accuracy([([0, 1], ["story"]), ([2, 3], ["story"])], vocabulary, has_word) == 0.5
    rng, vocabulary = np.random.default_rng(0), [str(n) for n in range(40)]
    has_word, random = rng.random((200, 40)) < 0.1, []
    for _ in range(1000):
        lists = [(rng.permutation(200)[:10].tolist(), rng.permutation(vocabulary)[:5].tolist()) for _ in range(3)]
        random.append(matching_accuracy(lists, vocabulary, has_word))
    assert np.mean(random) == pytest.approx(1 / 3, abs=0.02)


def test_chance_is_what_random_scores_get() -> None:
    rng = np.random.default_rng(0)
    people = 3000
    wanted = [rng.permutation(60)[: rng.integers(1, 9)] + 40 for _ in range(people)]
    known = [rng.permutation(40)[: rng.integers(1, 30)] for _ in range(people)]
    for score in ranking_scores("test", rng.random((people, 100)), known, wanted):
        assert score.value == pytest.approx(score.chance, rel=0.06), score.name


def test_a_history_of_unknown_or_repeated_items_is_refused() -> None:
    kind = History(ITEMS)
    assert kind.decode([3, 1]).tolist() == [3, 1]
    for wrong in ([10], [-1], [1, 1]):
        with pytest.raises(UnreadableExample):
            kind.decode(wrong)


def test_histories_need_a_catalogue(viewers: Corpus) -> None:
    bare = dataclasses.replace(viewers, columns={"liked": History()})
    with pytest.raises(UserError, match="catalogue"):
        fit_processor(dgvae.Recipe(), bare)


def test_people_are_on_one_side_and_liked_films_in_the_order_of_time(viewers: Corpus) -> None:
    films = corpora.movies()
    assert sum(map(len, viewers.splits.values())) == len(viewers) > 800
    history = viewers.value(0, "liked")
    person = int(viewers.key(0).removeprefix("person ")) - 1
    times, stars = [], []
    for film in history.tolist():
        ratings = films.value(film, "ratings")
        own = int(np.flatnonzero(ratings.users == person)[0])
        times.append(int(ratings.times[own]))
        stars.append(int(ratings.ratings[own]))
    assert times == sorted(times)
    assert min(stars) >= 4


@pytest.fixture(scope="module")
def trained(viewers: Corpus, tmp_path_factory: pytest.TempPathFactory):
    few = viewers.with_splits({name: rows[::2] for name, rows in viewers.splits.items()})
    out = tmp_path_factory.mktemp("dgvae") / "run"
    return few, train(dgvae.Recipe(batch_size=64), few, Budget(steps=60), out=out, validate=validation(few))


def test_training_on_real_histories_beats_the_most_popular_films(trained) -> None:
    viewers, run = trained
    logged = [entry["losses"] for entry in run.history if "losses" in entry]
    for name in ("item_nll", "text_nll"):
        assert logged[-1][name] < logged[0][name]
    scores = {score.name: score for score in evaluate(run, viewers)}
    own, popular = (scores[f"test/{way}/Recall@50"] for way in ("recommendation", "most_popular"))
    assert own.value > popular.value > 2 * own.chance
    assert scores["test/recommendation_from_5/Recall@50"].value < own.value
    assert scores["test/prototype_words/matching_accuracy"].chance == 0.25
    assert "items/prototypes_and_labels/mutual_information" in scores
    assert any("validation/recommendation/Recall@20" in entry.get("validation", {}) for entry in run.history)
    again = {score.name: score for score in evaluate(load_run(run.directory), viewers)}
    for name, score in scores.items():
        np.testing.assert_allclose(again[name].clusters, score.clusters, atol=1e-6, err_msg=name)


def test_what_such_a_run_cannot_do_is_said(trained) -> None:
    viewers, run = trained
    with pytest.raises(UserError, match="cannot embed"):
        search_corpus(run, viewers, "war")
    with pytest.raises(UserError, match="cannot embed"):
        write_embeddings(run, viewers, run.directory / "vectors.parquet")
    with pytest.raises(UserError, match="takes history"):
        run.processor(text=["war"])
