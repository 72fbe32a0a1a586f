"""Ambiguity of captions and calibration of matching: correlation, R-precision, ECE, and what both tasks pair."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.corpora.emoji_keywords import captions_of
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.evaluation.calibration import calibration_scores, reliability
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import ambiguity, calibration
from polymodal.layers.gaussian import DiagonalGaussian, example_noise
from polymodal.recipes.dual_encoders.clip import Recipe

DIM = 4


def test_r_precision_counts_the_relevant_among_as_many_nearest() -> None:
    distances = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [np.nan, 1.0, 2.0, 3.0]])
    relevant = [np.array([0, 2]), np.array([0, 1]), np.array([0, 1, 3])]
    # The second is all ties, in which the relevant ones come last.
    assert ambiguity.r_precision(distances, relevant).tolist() == [0.5, 0.0, pytest.approx(2 / 3)]


def test_calibration_is_zero_for_probabilities_that_happen_as_often() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.choice([0.05, 0.25, 0.95], 6000)
    truth = (rng.random(6000) < probabilities).astype(float)
    unit = np.arange(6000) // 2
    ece, brier = calibration_scores("test", probabilities, truth, unit)
    assert ece.value < 0.02
    assert brier.value == pytest.approx(np.mean((probabilities - truth) ** 2))
    assert brier.chance == pytest.approx(truth.var())
    over = np.where(probabilities > 0.5, 1.0, 0.0)
    bins = [(over >= low) & (over < low + 0.1 + (low == 0.9)) for low in np.arange(10) / 10]
    by_hand = sum(abs(over[one].sum() - truth[one].sum()) for one in bins) / 6000
    assert calibration_scores("", over, truth, unit)[0].value == pytest.approx(by_hand)
    assert calibration_scores("", np.full(6000, np.nan), truth, unit)[0].value == pytest.approx(1)
    diagram = reliability(probabilities, truth)
    assert diagram.pairs.sum() == 6000
    np.testing.assert_allclose(diagram.accuracy[[0, 2, 9]], [0.05, 0.25, 0.95], atol=0.04)


class Knowing(nn.Module):
    """Knows which caption an image has: means are of captions, sigma is the number of images that have them."""

    def __init__(self, processor: Processor, examples: list[dict[str, Any]]):
        super().__init__()
        self.decode, self.weight = processor.text.tokenizer.decode, nn.Parameter(torch.zeros(()))
        captions = [example["text"][0].text for example in examples]
        images = processor.image([example["image"] for example in examples])
        self.caption_of = {image.numpy().tobytes(): text for image, text in zip(images, captions, strict=True)}
        self.count = Counter(captions)

    def captions(self, name: str, values: Any) -> list[str]:
        if name == "image":
            return [self.caption_of[image.numpy().tobytes()] for image in values]
        return [text.removeprefix("there is ").removesuffix(" here") for text in self.decode(values)]

    def embed_gaussians(self, batch: dict[str, Any]) -> dict[str, DiagonalGaussian]:
        return {name: self.gaussians(self.captions(name, values)) for name, values in batch.items()}

    def gaussians(self, captions: list[str]) -> DiagonalGaussian:
        seeds = torch.tensor([zlib.crc32(text.encode()) for text in captions])
        counts = torch.tensor([[float(self.count[text])] for text in captions])
        means = example_noise(seeds, torch.ones_like(seeds), 1, DIM)[0]
        return DiagonalGaussian(means, counts.log().expand_as(means))

    def fused_log_sigma(self, batch: dict[str, Any]) -> Tensor:
        texts = self.captions("text", batch["text"])
        assert texts == self.captions("image", batch["image"])  # each with an item of its own
        return -self.gaussians(texts).log_sigma[:, 0]

    def itm_logits(self, batch: dict[str, Any]) -> Tensor:
        images, texts = (self.captions(name, batch[name]) for name in ("image", "text"))
        return torch.tensor([[20.0 * (text == image) - 10 for text in texts] for image in images])


def test_scores_of_a_method_that_knows_are_perfect(corpus: Corpus, tmp_path: Path) -> None:
    corpus = dataclasses.replace(corpus, splits={"test": corpus.rows("train")[:20]})  # of 16 different captions
    processor = fit_processor(Recipe.tiny(), dataclasses.replace(corpus, splits={"train": corpus.rows("test")}))
    reader = Reader(corpus, processor)
    _, examples = reader.read_split("test")
    inputs = TaskInputs(Knowing(processor, examples), processor, reader)
    assert ambiguity.task.applies_to(inputs)
    scores = {score.name: score for score in ambiguity.task.score(inputs)}
    expected = {"SRCC": 1.0, "fused_SRCC": -1.0, "R-precision": 1.0}
    for name, value in expected.items():
        assert scores[f"test/ambiguity/{name}"].value == pytest.approx(value), name
    counts = Counter(example["text"][0].text for example in examples)
    chances = [count / len(examples) for count in counts.values() for _ in range(2) if count > 1]
    assert scores["test/ambiguity/R-precision"].chance == pytest.approx(np.mean(chances))
    assert scores["test/ambiguity/log_sigma"].value == -scores["test/ambiguity/fused_log_sigma"].value
    ece, brier = calibration.task.score(inputs)
    assert (ece.name, brier.name) == ("test/matching/ECE", "test/matching/Brier")
    assert ece.value < 1e-4
    _, truth, unit = calibration.match_probabilities(inputs, "test")
    assert np.bincount(unit, truth).tolist() == [1.0] * len(examples)
    assert 0 < (truth == 0).sum() <= len(examples)
    for plot in (ambiguity.plot, calibration.plot):
        plot(inputs).save(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 2000


def test_names_and_keywords_are_captions_each_once() -> None:
    captions = [
        {"text": "Hot pepper", "language": "en"},
        {"text": "chili, hot, hot pepper, ", "language": "en"},
        {"text": "Chili", "language": "de"},
    ]
    assert captions_of(captions) == ["hot pepper", "chili", "hot"]
