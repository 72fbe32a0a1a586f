"""UniQA: adapter and expected score against the released code, purification, few labels, crops and correlations."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.corpora.in_memory import from_table
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.data.rated_texts import level_index, purified, texts_of_score, tf_idf_similarity
from polymodal.errors import UserError
from polymodal.evaluation.tasks.score_prediction import correlation_scores, plcc, prediction_scores, srcc
from polymodal.layers.expected_score import ExpectedScore
from polymodal.layers.residual_adapter import ResidualAdapter
from polymodal.modalities.image_augmentation import center_crop, random_crop
from polymodal.objectives.regression import masked_mse
from polymodal.recipes.dual_encoders.uniqa import Recipe, UniQA
from polymodal.rng import ExampleRNG

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/uniqa.npz").items()}


@pytest.mark.parametrize(("kind", "prompts"), [("single", 5), ("ensemble", 20)])
def test_scores_losses_and_gradients_are_those_of_the_released_code(kind: str, prompts: int, corpus: Corpus) -> None:
    recipe = dataclasses.replace(Recipe.tiny(), score_columns=("hue",), prompt_ensemble=kind == "ensemble")
    model = recipe.build(fit_processor(recipe, corpus))
    assert isinstance(model, UniQA)
    model.adapters[0].load_state_dict(
        {f"adapter.fc.{n}.weight": GOLDEN[f"{kind}/weight_{n}"] for n in (0, 2)}
        | {"head.score_level": GOLDEN[f"{kind}/levels"]}
    )
    model.logit_scale.load_state_dict({"logit_scale": GOLDEN["log_scale"]})
    normalized = F.normalize(GOLDEN["prompts"][:prompts], dim=-1)
    predicted = model.adapters(GOLDEN["features"], normalized, model.logit_scale())
    close(predicted[:, 0], GOLDEN[f"{kind}/score"])
    loss = masked_mse(torch.cat([predicted[:, 0], torch.ones(2)]), F.pad(GOLDEN["mos"], (0, 2), value=math.nan))
    close(loss, GOLDEN[f"{kind}/loss"])
    loss.backward()
    named = dict(model.adapters[0].named_parameters())
    close(named["head.score_level"].grad, GOLDEN[f"{kind}/gradient_levels"])
    for n in (0, 2):
        close(named[f"adapter.fc.{n}.weight"].grad, GOLDEN[f"{kind}/gradient_{n}"])


def close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_expected_score_is_between_the_levels_and_groups_are_averaged() -> None:
    head, logits = ExpectedScore(), torch.randn(50, 10) * 20
    score = head(logits)
    assert 0.2 - 1e-6 <= score.min() < 0.4
    assert 0.8 < score.max() <= 1 + 1e-6
    torch.testing.assert_close(score, (head(logits[:, :5]) + head(logits[:, 5:])) / 2)
    certain = 100 * torch.eye(5)
    torch.testing.assert_close(head(certain), torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))


def test_residual_adapter_only_adds() -> None:
    x = torch.randn(7, 12)
    assert (ResidualAdapter(12)(x) >= x).all()


def test_purification_is_the_sum_of_both_ranks() -> None:
    comments = ["sharp image", "I was there with my whole family last year", "a sharp and colorful image", "lol"]
    idf = dict.fromkeys(("a", "sharp", "image", "colorful"), 1.0)
    relevance = tf_idf_similarity("a sharp image", comments, idf)
    np.testing.assert_allclose(relevance, [2 / 6**0.5, 0, 3 / 12**0.5, 0], atol=1e-6)
    # Ranks of relevance 3, 1.5, 4, 1.5 and of length 2, 4, 3, 1.
    assert purified(comments, relevance, 3) == [comments[2], comments[1], comments[0]]


def test_texts_of_a_score_have_its_level() -> None:
    assert [level_index(score) for score in (0.0, 0.2, 0.59, 0.99, 1.0, 1.3, -1.0)] == [0, 1, 2, 4, 4, 4, 0]
    assert "perfect image" in texts_of_score("mos", 0.9)
    assert "the image quality of this image is bad" in texts_of_score("image_quality", 0.1)


@pytest.fixture
def rated() -> Corpus:
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": PILImage.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)),
            "comments": ["first!", "this is a dreadfully blurry image", f"see you on day {n}"],
            "dmos": float(n % 7),
            "split": ("train", "train", "validation", "test")[n % 4],
        }
        for n in range(64)
    ]
    return from_table(rows)


def test_texts_of_scores_and_comments_of_own_data(rated: Corpus) -> None:
    recipe = dataclasses.replace(Recipe.tiny(), lower_is_better=("dmos",), num_comments=1, num_labels=3)
    processor = fit_processor(recipe, rated)
    row = int(rated.rows("train")[0])  # of 0, which is the best
    example = processor.load_example(rated, row)
    assert example["scores"] == [1.0]
    assert "perfect image" in [caption.text for caption in example["text"]]
    assert example["comments"] == ["this is a dreadfully blurry image"]
    rows = recipe.labelled_rows(rated, processor)
    assert len({*rows.tolist()}) == 3
    assert {*rows.tolist()} < {*rated.rows("train").tolist()}
    assert len(rows) >= recipe.batch_size
    recipe = dataclasses.replace(recipe, batch_size=3, adapter_fraction=1.0)
    batches = recipe.labelled_rows(rated, processor)
    assert batches.tolist() == sorted({*rows.tolist()})
    with pytest.raises(UserError, match="mos"):
        fit_processor(dataclasses.replace(recipe, score_columns=("mos",)), rated)


def of_scores(splits: tuple[str, ...], **known: int) -> Corpus:
    """A table of random images with random scores. known: the last so many rows have the score."""
    rng = np.random.default_rng(0)
    return from_table(
        [
            {"image": PILImage.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))}
            | {name: float(rng.random()) if n >= 36 - count else None for name, count in known.items()}
            | {"split": splits[n % len(splits)]}
            for n in range(36)
        ]
    )


def test_no_score_has_more_labels_than_asked_for() -> None:
    corpus = of_scores(("train",), quality=36, aesthetics=18)
    recipe = dataclasses.replace(Recipe.tiny(), num_labels=6)
    processor = fit_processor(recipe, corpus)
    learned = {*recipe.labelled_rows(corpus, processor).tolist()}
    scores = np.stack([processor.scores.load(corpus, row) for row in learned])
    assert (~np.isnan(scores)).sum(0).tolist() == [6, 6]
    found = processor.scores.labelled_rows(corpus)
    assert {name: len(rows) for name, rows in found.items()} == {"quality": 6, "aesthetics": 6}


@pytest.mark.parametrize("given", [{"score_columns": ("quality",)}, {}])
def test_a_score_that_is_not_learned_cannot_be_turned_round(given: dict[str, tuple[str, ...]]) -> None:
    corpus = of_scores(("train",), quality=36, aesthetics=36 if given else 0)
    recipe = dataclasses.replace(Recipe.tiny(), lower_is_better=("aesthetics",), **given)
    with pytest.raises(UserError, match="aesthetics"):
        fit_processor(recipe, corpus)


def test_images_without_text_or_score_are_left_out_of_pretraining() -> None:
    corpus = of_scores(("train",), quality=12, aesthetics=18)
    processor = fit_processor(Recipe.tiny(), corpus)
    rows = Recipe.tiny().pretraining_rows(corpus, processor)
    assert rows.tolist() == list(range(18, 36))
    assert all(processor.load_example(corpus, row)["text"] for row in rows.tolist())


def test_other_data_may_lack_a_score_or_training_images() -> None:
    corpus = of_scores(("train", "test"), quality=36, aesthetics=36)
    recipe = Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    model = recipe.build(processor).eval()
    every = {"predict", "zero_shot", "linear_regression"}
    for other, expected in (
        (corpus, {f"test/{task}_{name}" for task in every for name in ("quality", "aesthetics")}),
        (of_scores(("train", "test"), quality=36), {f"test/{task}_quality" for task in every}),
        (of_scores(("test",), quality=36), {f"test/{task}_quality" for task in every - {"linear_regression"}}),
    ):
        scores = prediction_scores(model, processor, Reader(other, processor), "test")
        assert {score.name.rpartition("/")[0] for score in scores} == expected


def test_crops_are_cut_and_not_resized() -> None:
    image = torch.arange(2 * 3 * 9 * 11.0).view(2, 3, 9, 11)
    crop = random_crop(image, 5, 0.5, ExampleRNG.of(0, 0, 2))
    for one, whole in zip(crop, image, strict=True):
        windows = whole.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(one, window) or torch.equal(one.flip(2), window) for window in windows)
    torch.testing.assert_close(center_crop(image, 5), image[:, :, 2:7, 3:8])


def test_correlations() -> None:
    truth = np.arange(20.0)
    assert srcc(np.exp(truth / 4), truth) == pytest.approx(1)
    assert 0 < plcc(np.exp(truth / 4), truth) < 0.9
    assert srcc(np.zeros(20), truth) == plcc(np.full(20, np.nan), truth) == 0
    scores = correlation_scores("test/predict_mos", -truth, truth)
    assert [(score.name, round(score.value, 6)) for score in scores] == [
        ("test/predict_mos/SRCC", -1.0),
        ("test/predict_mos/PLCC", -1.0),
    ]
