"""DGVAE and recommendation: formulas in plain loops, what must not leak, ranking figures, and training on real data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal import corpora
from polymodal.corpora import Corpus
from polymodal.data.columns.history import HistoryColumn
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UnreadableExample, UserError
from polymodal.evaluation import evaluate, validation
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


def small(**choices) -> dgvae.DGVAE:
    torch.manual_seed(0)
    recipe = dgvae.Recipe(embed_dim=8, knn_k=3, **choices)
    return recipe.build(Processor({}, {"history": HistoryColumn(ITEMS)}))


def test_gated_attention_and_agreement_follow_their_formulas() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    attended = dgvae.gated_attention(a, b)
    agreement = torch.zeros(())
    for n in range(2):
        distance = torch.stack([torch.stack([-(a[n, i] - b[n, j]).abs().sum() for j in range(3)]) for i in range(3)])
        for i in range(3):
            weights = torch.stack(
                [torch.tanh(a[n, i] @ b[n, j]) * torch.sigmoid(distance[i, j] - distance[i].mean()) for j in range(3)]
            )
            torch.testing.assert_close(attended[n, i], weights @ b[n])
            others = torch.stack([F.softplus(a[n, i] @ b[n, j]) for j in range(3) if j != i]).mean()
            agreement += (others + F.softplus(-a[n, i] @ b[n, i])) / 6
    torch.testing.assert_close(dgvae.prototype_mutual_information(a, b), agreement)
    assert dgvae.prototype_mutual_information(a[:, :1], b[:, :1]).isfinite()


def test_the_divergence_is_zero_at_the_prior_and_positive_elsewhere() -> None:
    assert dgvae.kl_divergence(torch.zeros(2, 3, 4)) == 0
    for value in (-2.0, 0.5):
        assert dgvae.kl_divergence(torch.full((2, 3, 4), value)) > 0


def test_scores_are_those_of_the_plain_sum_over_prototypes() -> None:
    method = small().eval()
    chosen = (torch.rand(4, 10) < 0.4).float()
    assignment = method.items.assignment()
    torch.testing.assert_close(assignment.sum(1), torch.ones(10))
    latents, _ = method.items.encode(chosen, assignment, method.graph)
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(4, 4))
    embedding = F.normalize(method.items.embedding.double(), dim=1)
    plain = sum(
        assignment[:, k].double() * torch.exp(latents[:, k].double() @ embedding.T / 0.1) for k in range(4)
    ).log()
    scores = method.items.by_prototype(latents, assignment).logsumexp(1)
    torch.testing.assert_close(scores, plain.float(), atol=1e-4, rtol=1e-4)
    far = method.items.by_prototype(20 * latents, assignment).logsumexp(1)
    assert far.isfinite().all()


def test_the_sparse_graph_smooths_as_the_dense_one() -> None:
    method = small(dropout=0.0).eval()
    chosen = (torch.rand(4, 10) < 0.4).float()
    assignment = method.items.assignment()
    dense = torch.zeros(10, 10)
    for (source, target), weight in zip(method.edges.T.tolist(), method.edge_weights.tolist(), strict=True):
        dense[source, target] += weight
    assert (dense.diagonal() > 0).all()
    parts = F.normalize(chosen[:, None, :] * assignment.T, dim=-1)
    smooth = (parts @ dense @ dense + parts) / 2
    expected = F.normalize(method.items.encoder(smooth)[..., :8], dim=-1)
    torch.testing.assert_close(method.items.encode(chosen, assignment, method.graph)[0], expected)


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


def test_nothing_is_random_in_evaluation_and_nobody_is_without_an_answer() -> None:
    method = small()
    batch = {"history": (torch.rand(4, 10) < 0.4).float()}
    assert not torch.equal(method.recommend(batch), method.recommend(batch))
    method.eval()
    assert torch.equal(method.recommend(batch), method.recommend(batch))
    nobody = {"history": torch.zeros(1, 10)}
    assert method.recommend(nobody).isfinite().all()
    method.train()
    losses = method.losses(nobody)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_the_divergence_s_weight_rises_with_the_updates_which_a_checkpoint_keeps() -> None:
    method = small(kl_anneal_steps=4)
    batch = {"history": (torch.rand(4, 10) < 0.4).float()}
    for _ in range(3):
        method.losses(batch)
        method.losses(batch)  # of another micro-batch
        method.after_step(0.0)
    assert method.state_dict()["updates"] == 3
    method.eval()
    method.losses(batch)
    assert method.updates == 3


def test_ranking_figures_of_a_known_order() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.0, 5.0] + [0.0] * 95])
    found = {s.name: s for s in ranking_scores("test", scores, [np.array([0])], [np.array([1, 4, 60])])}
    assert found["test/Recall@10"].value == pytest.approx(2 / 3)
    gain = 1 / np.log2(2) + 1 / np.log2(5)
    best = sum(1 / np.log2(place + 2) for place in range(3))
    assert found["test/NDCG@10"].value == pytest.approx(gain / best)
    assert found["test/Recall@10"].chance == pytest.approx(10 / 99)


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
    assert "items/prototypes_and_labels/mutual_information" in scores
    assert any("validation/recommendation/Recall@20" in entry.get("validation", {}) for entry in run.history)
    again = {score.name: score for score in evaluate(load_run(run.directory), viewers)}
    for name, score in scores.items():
        np.testing.assert_allclose(again[name].clusters, score.clusters, atol=1e-6, err_msg=name)


def test_explanations_name_unseen_films_and_words_of_each_prototype(trained) -> None:
    viewers, run = trained
    history = viewers.value(int(viewers.rows("test")[0]), "liked")
    (person,) = run.model.explain(run.processor(history=[history]), count=4)
    assert len(person) == 4
    for items, words in person:
        assert len(items) == len(words) == 4
        assert not set(items) & set(history.tolist())
        assert set(words) <= set(run.model.vocabulary)


def test_what_such_a_run_cannot_do_is_said(trained) -> None:
    viewers, run = trained
    with pytest.raises(UserError, match="cannot embed"):
        search_corpus(run, viewers, "war")
    with pytest.raises(UserError, match="cannot embed"):
        write_embeddings(run, viewers, run.directory / "vectors.parquet")
    with pytest.raises(UserError, match="takes history"):
        run.processor(text=["war"])


@pytest.mark.parametrize(
    "choice", [{"use_item_graph": False}, {"use_text": False}, {"use_text": False, "num_prototypes": 1}]
)
def test_every_part_can_be_left_out(choice: dict) -> None:
    method = small(**choice)
    losses = method.losses({"history": (torch.rand(4, 10) < 0.4).float()})
    assert ("text_nll" in losses) == choice.get("use_text", True)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in method.parameters())
