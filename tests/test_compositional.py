"""Compositional foils, Winoground, and the scores of pairs that every method has for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import polymodal as pm
from polymodal.corpora import Corpus, from_path
from polymodal.data.compositional_foils import (
    attribute_foil,
    compositional_foils,
    minimal_pairs,
    order_foils,
    relation_foil,
)
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.evaluation.caption_prior import CaptionPrior, log_mean_exp, log_priors, noise_images, prior_images
from polymodal.evaluation.pair_scores import (
    GRID,
    MatchingScore,
    PairScorer,
    ScoredPairs,
    cross_fitted,
    item_values,
    sampled,
    strictly_greater,
)
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import compositional_foils as foils_task
from polymodal.evaluation.tasks import winoground as winoground_task
from polymodal.evaluation.tasks.compositional_foils import first_is_best
from polymodal.evaluation.tasks.winoground import winoground
from polymodal.recipes import find

CAPTION = "A small red car and a large cat in front of a wooden house"


def test_order_foils_have_the_same_words_and_differ() -> None:
    foils = order_foils(CAPTION, np.random.default_rng(0))
    assert len({*foils, CAPTION}) == 5
    assert all(sorted(foil.split()) == sorted(CAPTION.split()) for foil in foils)
    assert foils == order_foils(CAPTION, np.random.default_rng(0))
    stop = [place for place, word in enumerate(CAPTION.split()) if word.lower() in ("a", "and", "in", "of")]
    assert [foils[0].split()[place] for place in stop] == [CAPTION.split()[place] for place in stop]
    assert all({*a} == {*b} for a, b in zip(_trigrams(foils[2]), _trigrams(CAPTION), strict=True))
    assert sorted(_trigrams(foils[3])) == sorted(_trigrams(CAPTION)) or len(CAPTION.split()) % 3
    assert order_foils("a red car", np.random.default_rng(0)) == []


def _trigrams(text: str) -> list[list[str]]:
    words = text.split()
    return [words[start : start + 3] for start in range(0, len(words), 3)]


def test_attributes_and_roles_are_exchanged() -> None:
    assert attribute_foil("a red car and a blue bus") == "a blue car and a red bus"
    assert attribute_foil("a red car and a blue car") is None  # the same is said
    assert attribute_foil("a red car and a red bus") is None
    named = attribute_foil("a shiny car by a very dull bus", ["shiny car", "very dull bus"])
    assert named == "a very dull car by a shiny bus"
    assert relation_foil("A dog to the left of a cat") == "A cat to the left of a dog"
    assert relation_foil("birds, a small cat is above a dog and a bee") == "birds, a dog is above a small cat and a bee"
    assert relation_foil("a dog next to a cat") is None  # symmetric
    assert compositional_foils("grinning face") == {}


def test_minimal_pairs_have_the_same_letters_in_another_order() -> None:
    captions = ["a fire truck", "some plants", "the old man", "truck: a Fire", "man, the old", "a fire truck", "old"]
    assert minimal_pairs(captions) == [(0, 3), (2, 4)]
    assert minimal_pairs(["a cat", "A cat"]) == []


def test_the_prior_is_the_mean_of_likelihoods_not_of_their_logarithms() -> None:
    values = np.random.default_rng(0).normal(-20, 3, (5, 4))
    expected = [np.log(sum(np.exp(value) for value in column) / 5) for column in values.T]
    np.testing.assert_allclose(log_mean_exp(values), expected)
    assert (log_mean_exp(values) > values.mean(0) + 0.1).all()  # Jensen
    np.testing.assert_allclose(log_mean_exp(np.full((5, 2), -900.0)), -900.0)  # no underflow, and no gap


def test_winoground_counts_ties_as_wrong_and_its_image_score_does_not_depend_on_alpha() -> None:
    rng = np.random.default_rng(1)
    likelihood, prior = rng.normal(-20, 2, (500, 2, 2)), rng.normal(-18, 4, (500, 1, 2))  # item, image, caption
    scores = {alpha: winoground((likelihood - alpha * prior).ravel()) for alpha in (0.0, 0.5, 1.0)}
    for one, s in zip(range(500), likelihood - 0.5 * prior, strict=True):
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        assert [scores[0.5][name][one] for name in ("text", "image", "group")] == [text, image, text and image]
    assert (scores[0.0]["image"] == scores[1.0]["image"]).all()
    assert (scores[0.0]["text"] != scores[1.0]["text"]).any()
    chance = winoground(rng.normal(size=40_000))
    assert [chance[name].mean() for name in chance] == pytest.approx([1 / 4, 1 / 4, 1 / 6], abs=0.02)
    for ties in (np.zeros(8), np.tile([1.0, 2.0], 4), np.repeat([1.0, 1.0 + 1e-9], 4), np.full(8, np.nan)):
        assert not any(values.any() for values in winoground(ties).values())
    assert first_is_best(np.array([2.0, 1, 1, 3, 3, 5, 4]), np.array([3, 2, 2])).tolist() == [1, 0, 1]
    assert not strictly_greater(np.array([-20.0]), np.array([-20.0 - 1e-6])).any()


def test_alpha_is_never_tuned_on_the_half_that_is_reported() -> None:
    values = np.zeros((len(GRID), 20))
    halves = np.random.default_rng(0).permutation(20)
    values[0, halves[:10]] = 1.0  # one half is right at alpha 0 only, the other at alpha 1 only
    values[-1, halves[10:]] = 1.0
    fitted, alphas = cross_fitted(values)
    assert alphas == (1.0, 0.0)
    assert not fitted.any()
    again, others = cross_fitted(np.where(np.isin(np.arange(20), halves[:10]), 0.5, values))
    assert others[0] == alphas[0]
    assert again[halves[:10]].tolist() == [0.5] * 10
    assert cross_fitted(np.ones((len(GRID), 1)))[0].tolist() == [1.0]


def test_a_method_has_its_own_score_beside_all_others() -> None:
    class Method(nn.Module):
        matching_score = MatchingScore(alpha=0.5)

        def itm_logits(self, batch: Any) -> torch.Tensor:
            raise NotImplementedError

        def log_likelihood(self, batch: Any) -> torch.Tensor:
            raise NotImplementedError

    pairs = ScoredPairs.of(["image"], [["a b", "a b c d"]])
    scorer = PairScorer(TaskInputs(Method(), None, Reader.__new__(Reader)), pairs)
    vars(scorer).update(itm=np.array([0.0, 1.0]), likelihood=np.array([-2.0, -8.0]), lengths=np.array([2.0, 4.0]))
    vars(scorer)["_priors"] = {CaptionPrior(): np.array([-4.0, -4.0])}
    values = item_values(scorer, lambda scores: scores)
    assert {name: one.tolist() for name, one in values.items() if name not in ("alpha", "alpha_cross_fitted")} == {
        "": [0.0, -1.5],
        "itm": [0.0, 1.0],
        "blind": [-2.0, -1.0],
        "alpha_0": [-1.0, -2.0],
        "alpha_1": [1.0, -1.0],
    }


def test_noise_is_the_same_for_all_and_of_the_declared_values() -> None:
    prior = CaptionPrior(count=2, noise_mean=0.5, noise_std=0.1)
    images = noise_images((40, 40, 3), prior)
    assert [image.dtype for image in images] == [np.uint8, np.uint8]
    assert np.mean(images) / 255 == pytest.approx(0.5, abs=0.01)
    assert np.std(images) / 255 == pytest.approx(0.1, abs=0.01)
    assert all((one == other).all() for one, other in zip(images, noise_images((40, 40, 3), prior), strict=True))
    assert (images[0] != images[1]).any()
    pairs = ScoredPairs.of(["i", "j"], [["a", "b"], ["b"]])
    assert (pairs.texts, pairs.image.tolist(), pairs.text.tolist()) == (["a", "b"], [0, 0, 1], [0, 1, 1])


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a user: images with captions, of which every two have the same words."""
    folder, rng, rows = tmp_path_factory.mktemp("pairs") / "own", np.random.default_rng(0), []
    folder.mkdir()
    for number in range(40):
        left, right = ("red", "blue")[:: 1 if number % 2 else -1]
        pixels = np.full((32, 32, 3), 200 + number // 2, np.uint8)
        pixels[8:24, 4:14], pixels[8:24, 18:28] = ((220, 30, 30), (30, 30, 220))[:: 1 if number % 2 else -1]
        Image.fromarray(pixels + rng.integers(0, 5, pixels.shape, dtype=np.uint8)).save(folder / f"{number}.png")
        split = "test" if number < 20 else "train"
        rows.append((f"{number}.png", f"a {left} square left of a {right} disk number {number // 2}", split))
    pd.DataFrame(rows, columns=["file_name", "caption", "split"]).to_csv(folder / "captions.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("visualgptscore", ("itc", "itm", "alpha_0")), ("clip", ("itc",)), ("mono_internvl", ("alpha_0", "blind"))],
)
def test_any_method_is_scored_on_the_files_of_a_user(
    name: str, kinds: tuple[str, ...], pairs_folder: Path, tmp_path: Path
) -> None:
    corpus = from_path(pairs_folder)
    run = pm.train(find(name).tiny(), corpus, pm.Budget(steps=5), out=tmp_path / "run")
    scores = {score.name.removeprefix("test/"): score for score in pm.evaluate(run, corpus)}
    for kind in kinds:
        assert scores[f"foils/order/{kind}/accuracy"].chance == pytest.approx(0.2, abs=0.01)
        assert scores[f"foils/relation/{kind}/accuracy"].chance == 0.5
        assert scores[f"foils/attribute/{kind}/accuracy"].chance == 0.5
        assert [scores[f"winoground/{kind}/{metric}"].chance for metric in ("text", "image", "group")] == [
            1 / 4,
            1 / 4,
            1 / 6,
        ]
        assert len(scores[f"winoground/{kind}/text"].clusters) == 10
    if "alpha_0" in kinds:
        assert scores["winoground/blind/text"].value == 0  # the prior says the same of both images
        image = [scores[f"winoground/alpha_{alpha}/image"].clusters.tolist() for alpha in ("0", "1", "cross_fitted")]
        assert image[0] == image[1] == image[2]
        assert 0 <= scores["foils/order/alpha"].value <= 1
        assert -1 <= scores["foils/prior/rank_correlation"].value <= 1
    assert ("foils/order/accuracy" in scores) == (name == "visualgptscore")


class _Recorded(nn.Module):
    """Keeps the images that it is asked about; its likelihoods depend on nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(1)), []

    def log_likelihood(self, batch: Any) -> torch.Tensor:
        self.seen.append(batch["image"])
        return torch.zeros(len(batch["image"]))


def test_noise_is_normalized_as_other_images_and_the_same_for_every_caption(pairs_folder: Path) -> None:
    corpus, recipe = from_path(pairs_folder), find("visualgptscore").tiny()
    processor, method = fit_processor(recipe, corpus), _Recorded()
    inputs = TaskInputs(method, processor, Reader(corpus, processor))
    prior, size = CaptionPrior(count=2), recipe.image.image_size
    images = prior_images(inputs, prior, [np.zeros((size, size, 3), np.uint8)])
    log_priors(inputs, ["a red square", "a blue disk"], images, prior)
    mean, std = (np.array(values) for values in (processor.image.mean, processor.image.std))
    assert len(method.seen) == 2
    for seen, noise in zip(method.seen, images, strict=True):
        assert torch.equal(seen[0], seen[1])
        np.testing.assert_allclose(seen[0].permute(1, 2, 0).numpy(), (noise / 255 - mean) / std, atol=1e-5)
    training = prior_images(inputs, CaptionPrior("training", count=4), [images[0]])
    assert len(training) == 4
    assert all(
        (image == processor.image.load(corpus, row)).all()
        for image, row in zip(training, (20, 25, 30, 35), strict=True)
    )
    unreadable = Reader(corpus, processor)
    unreadable._kept = dict.fromkeys(range(40))
    instead = prior_images(TaskInputs(method, processor, unreadable), CaptionPrior("training", count=2), [images[0]])
    assert all((image == noise).all() for image, noise in zip(instead, images, strict=True))


def test_pairs_in_consecutive_rows_are_found_in_large_splits(
    pairs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winoground_task, "MAX_PAIRS", 9)  # of ten
    corpus, recipe = from_path(pairs_folder), find("clip").tiny()
    processor = fit_processor(recipe, corpus)
    inputs = TaskInputs(recipe.build(processor), processor, Reader(corpus, processor))
    scores = {score.name: score for score in winoground_task.winoground_scores(inputs)}
    assert len(scores["test/winoground/itc/text"].clusters) == 9
    rows = np.arange(1000)
    drawn = sampled(rows, 500)
    assert (len(drawn), len({*drawn.tolist()}), (np.diff(drawn) > 0).all()) == (500, 500, True)
    assert 200 < (drawn % 2).sum() < 300
    assert sampled(rows, 1000) is rows
    assert winoground_task.winoground_scores(replace(inputs, reader=Reader(_without_pairs(corpus), processor))) == []
    damaged = Reader(corpus, processor)
    damaged._kept = {4: None}
    scores = {score.name: score for score in winoground_task.winoground_scores(replace(inputs, reader=damaged))}
    assert len(scores["test/winoground/itc/text"].clusters) in (8, 9)


def _without_pairs(corpus: Corpus) -> Corpus:
    """One row of every pair."""
    return corpus.with_splits({"test": corpus.rows("test")[::2], "train": corpus.rows("train")})


def test_kinds_are_scored_as_if_each_were_alone() -> None:
    described = [
        ("a", {"order": ["b", "c"], "relation": ["d"]}),
        ("e", {"attribute": ["f"]}),
        ("g", {"order": ["h"], "attribute": ["i"], "relation": ["j"]}),
    ]
    kinds = ["order", "attribute", "relation"]
    texts = [
        text
        for caption, foils in described
        for text in [caption, *(foil for kind in kinds for foil in foils.get(kind, []))]
    ]
    found = {kind: foils_task._places(described, kinds, kind) for kind in kinds}
    assert {
        kind: ("".join(texts[place] for place in places), counts.tolist()) for kind, (places, counts) in found.items()
    } == {
        "order": ("abcgh", [3, 2]),
        "attribute": ("efgi", [2, 2]),
        "relation": ("adgj", [2, 2]),
    }


def test_the_rank_correlation_has_an_interval_that_fits_it() -> None:
    rng = np.random.default_rng(0)
    values, unit = rng.normal(size=80), np.repeat(np.arange(16), 5)
    same = foils_task.rank_correlation("x", values, np.exp(values), unit)
    assert tuple(same.estimate()) == pytest.approx((1, 1, 1))
    near = foils_task.rank_correlation("x", values, values + 0.1 * rng.normal(size=80), unit)
    assert near.value > 0.98
    assert 0.95 < near.estimate().low < near.value < near.estimate().high < 1.005
    assert len(near.clusters) == 16
    apart = foils_task.rank_correlation("x", values, rng.normal(size=80), unit).estimate()
    assert apart.low < 0 < apart.high
    assert foils_task.rank_correlation("x", values, np.ones(80), unit).value == 0
