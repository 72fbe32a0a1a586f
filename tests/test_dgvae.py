"""DGVAE: the released code's numbers, annealing by updates, and parts that can be left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.data.columns.history import HistoryColumn
from polymodal.data.processor import Processor
from polymodal.errors import UserError
from polymodal.modalities.history import Item
from polymodal.recipes.recommendation import dgvae
from polymodal.training import RuntimeConfig

GENRES = ["war", "love", "war", "space", "love", "space", "war", "love", "space", "war"]
ITEMS = tuple(
    Item(f"film {n}", f"{genre} story {n % 3}0s", (f"person {n % 4}",), (genre,)) for n, genre in enumerate(GENRES)
)
GOLDEN = {name: torch.from_numpy(a) for name, a in np.load(Path(__file__).parent / "golden" / "dgvae.npz").items()}


def small(**choices) -> dgvae.DGVAE:
    torch.manual_seed(0)
    recipe = dgvae.Recipe(**{"embed_dim": 8, "knn_k": 3} | choices)
    return recipe.build(Processor({}, {"history": HistoryColumn(ITEMS)}))


def histories(users: int = 4) -> torch.Tensor:
    return (torch.rand(users, 10, generator=torch.Generator().manual_seed(0)) < 0.4).float()


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> dgvae.DGVAE:
    """A model with the weights, words and graph of the released one, and its noise in training."""
    words = (["w"] * 7, GOLDEN["item_words"])
    for name, value in (("words", words), ("text_neighbors", GOLDEN["text_edges"])):
        monkeypatch.setattr(HistoryColumn, name, lambda column, *count, value=value: value)
    monkeypatch.setattr(HistoryColumn, "fact_neighbors", lambda column, count: GOLDEN["image_edges"])
    model = small(embed_dim=6, num_prototypes=3, dropout=0.0, mi_weight=0.4, kl_anneal_steps=4000)
    weights = {name: value for name, value in GOLDEN.items() if name.startswith(("rating_vae.", "text_vae."))}
    model.load_state_dict(weights | {"updates": torch.tensor(1000)})
    gumbel = {10: GOLDEN["gumbel.rating_vae"], 7: GOLDEN["gumbel.text_vae"]}
    drawn = iter((GOLDEN["noise.rating_vae"], GOLDEN["noise.text_vae"]))
    monkeypatch.setattr(F, "gumbel_softmax", lambda logits, dim: (logits + gumbel[len(logits)]).softmax(dim))
    monkeypatch.setattr(torch, "randn_like", lambda mean: next(drawn))
    return model


def test_scores_are_those_of_the_released_code(released: dgvae.DGVAE) -> None:
    output = released.eval()(GOLDEN["history"])
    for name, probs, logits in (("items", "item_probs", "item_logits"), ("words", "word_probs", "word_logits")):
        torch.testing.assert_close(output[name], GOLDEN[probs].log(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output[name].logsumexp(1), GOLDEN[logits], rtol=1e-5, atol=1e-5)


def test_the_loss_and_its_gradients_are_those_of_the_released_code(released: dgvae.DGVAE) -> None:
    loss = torch.stack(list(released.losses({"history": GOLDEN["history"]}).values())).sum()
    torch.testing.assert_close(loss, GOLDEN["loss"], rtol=1e-5, atol=1e-5)
    loss.backward()
    for name, own in (("item_embeddings", "rating_vae.item_embeddings"), ("text_prototypes", "text_vae.prototypes")):
        torch.testing.assert_close(released.get_parameter(own).grad, GOLDEN[f"gradient.{name}"], rtol=1e-5, atol=1e-5)


def test_without_words_and_graph_it_is_the_released_macridvae(released: dgvae.DGVAE) -> None:
    released.text_vae, released.recipe = None, dgvae.Recipe(use_item_graph=False, kl_anneal_steps=4000)
    (loss,) = released.losses({"history": GOLDEN["history"]}).values()
    torch.testing.assert_close(loss, GOLDEN["macridvae_loss"], rtol=1e-5, atol=1e-5)


def test_nothing_is_random_in_evaluation_and_empty_histories_and_long_latents_are_finite() -> None:
    model, batch = small(), {"history": histories()}
    assert not torch.equal(model.recommend(batch), model.recommend(batch))
    sum(model.losses({"history": torch.zeros(1, 10)}).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    assert torch.equal(model.recommend(batch), model.recommend(batch))
    assert model.recommend({"history": torch.zeros(1, 10)}).isfinite().all()
    assignment = model.item_prototypes()
    torch.testing.assert_close(assignment.sum(1), torch.ones(10))
    latents, _ = model.rating_vae.encode(batch["history"], assignment)
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(4, 4))
    assert model.rating_vae.decode(20 * latents, assignment).logsumexp(1).isfinite().all()


def test_kl_annealing_counts_updates_not_micro_batches(corpus: Corpus) -> None:
    run = pm.train(dgvae.Recipe.tiny(), corpus, pm.Budget(steps=3), runtime=RuntimeConfig(micro_batch=2))
    assert run.model.state_dict()["updates"] == 3


@pytest.mark.parametrize("choice", [{"use_item_graph": False}, {"use_text": False}, {"num_prototypes": 1}])
def test_every_part_can_be_left_out(choice: dict) -> None:
    model = small(**choice)
    losses = model.losses({"history": histories()})
    assert ("text_nll" in losses) == choice.get("use_text", True)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("text", ["", "a b", "the of", "unshared{}"])
def test_a_catalogue_without_shared_words_is_refused_or_used_without_text(text: str) -> None:
    column = HistoryColumn([Item(f"film {n}", text.format(n)) for n in range(10)])
    with pytest.raises(UserError, match="No word occurs"):
        dgvae.Recipe.tiny().build(Processor({}, {"history": column}))
    model = dataclasses.replace(dgvae.Recipe.tiny(), use_text=False).build(Processor({}, {"history": column}))
    assert set(model.losses({"history": histories()})) == {"item_nll"}
    assert model.edges.shape[1] == 20 + 20 * (text == "the of")  # self-loops of both graphs, and equal texts


def test_explanations_name_items_outside_the_history_and_words_of_each_prototype() -> None:
    model, history = small().eval(), histories(2)
    for user, chosen in zip(model.explain({"history": history}, count=3), history, strict=True):
        assert len(user) == 4
        for items, words in user:
            assert len(items) == len(words) == 3  # of seven words in all
            assert not chosen[items].any()
            assert set(words) <= set(model.vocabulary)
    assert len(model.explain({"history": history}, count=9)[0][0][1]) == 7
