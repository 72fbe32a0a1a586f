"""CLIPPINGS: the official code's vectors, losses, clusters, links and hard negatives, and resumption."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.data.class_order import hard_negative_groups, rows_by_class
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.linking import LinkedRecords, Links, cut, single_linkage
from polymodal.evaluation.tasks.linking import VectorLinker
from polymodal.recipes.dual_encoders import clippings
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


def test_a_run_goes_on_with_the_hard_negatives_that_it_has_mined(corpus: Corpus, tmp_path: Path) -> None:
    recipe, budget = Recipe.tiny(), pm.Budget(steps=12)
    whole = train(recipe, corpus, budget).model.state_dict()
    with pytest.raises(Paused):
        train(recipe, corpus, budget, out=tmp_path / "run", until_step=10)
    assert np.load(tmp_path / "run/mined-2.npy").shape == (24, 2)
    resumed = train(recipe, corpus, budget, out=tmp_path / "run").model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "run/mined-2.npy").exists()


def test_records_are_mined_some_at_a_time(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    model, reader, asked = recipe.build(processor), Reader(corpus, processor), []
    whole = recipe.nearest_classes(model, reader)
    read = reader.read_all
    monkeypatch.setattr(reader, "read_all", lambda rows: asked.append(len(rows)) or read(rows))
    monkeypatch.setattr(clippings, "MINED_TOGETHER", 10)
    mined, classes = recipe.nearest_classes(model, reader), rows_by_class(corpus)
    own = [next(number for number, of in enumerate(classes) if row in of) for row in sorted(np.concatenate(classes))]
    assert mined.shape == whole.shape
    assert (mined == np.array(own)[:, None]).any(1).mean() > 0.9  # a record is a neighbor of itself
    assert asked == [10, 10, 4]


def test_classes_that_do_not_fill_a_batch_are_refused_before_anything_is_trained(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"4 classes with 2 rows each are less than one batch of 10; .* of 8 or less"):
        train(dataclasses.replace(Recipe.tiny(), batch_size=10), corpus, pm.Budget(steps=3))


@pytest.mark.parametrize(("wrong", "message"), [({"m": 3}, "no multiple of --m 3"), ({"length_bucketing": 2}, "part")])
def test_what_would_part_the_records_of_a_class_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(Recipe.tiny(), **wrong)
