"""Ambiguity of captions and calibration of matching: correlation, R-precision, ECE, and what both tasks pair."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.corpora.emoji_keywords import captions_of
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.evaluation.calibration import calibration_scores, reliability
from polymodal.evaluation.task import TaskInputs
from polymodal.evaluation.tasks import ambiguity, calibration
from polymodal.layers.gaussian import DiagonalGaussian, example_noise
from polymodal.modalities.text import Caption
from polymodal.recipes.dual_encoders.clip import Recipe

DIM = 4


def test_r_precision_counts_the_relevant_among_as_many_nearest() -> None:
    distances = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [np.nan, 1.0, 2.0, 3.0]])
    relevant = [np.array([0, 2]), np.array([0, 1]), np.array([0, 1, 3])]
    # The second is all ties, in which the relevant ones come last.
    assert ambiguity.r_precision(distances, relevant).tolist() == [0.5, 0.0, pytest.approx(2 / 3)]


def test_the_partial_correlation_is_that_of_what_a_third_variable_leaves_of_ranks() -> None:
    rng = np.random.default_rng(0)
    given, truth = rng.normal(size=80), rng.integers(0, 5, 80).astype(float)
    values = truth + given + rng.normal(size=80)
    ranks = [rankdata(each) for each in (values, truth, given)]
    third = np.stack([ranks[2], np.ones(80)], axis=1)
    rest = [rank - third @ np.linalg.lstsq(third, rank, rcond=None)[0] for rank in ranks[:2]]
    assert ambiguity.partial_srcc(values, truth, given) == pytest.approx(np.corrcoef(*rest)[0, 1])
    assert ambiguity.partial_srcc(np.exp(given), truth, given) == 0
    assert ambiguity.partial_srcc(np.ones(80), truth, given) == 0


def test_negatives_of_calibration_are_no_neighbors_and_no_captions_of_their_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"text {number // 2}" for number in range(64)]
    # The second caption of an item of one half is the first of all of the other half.
    captions = [[Caption(text, "en"), *([Caption("both", "en")] * (n % 4 == 0))] for n, text in enumerate(texts)]
    for number in range(1, 64, 4):
        captions[number][0] = Caption("both", "en")
    examples = [{"image": number, "text": captions[number]} for number in range(64)]
    seen: list[tuple[int, str]] = []

    def answers(method: Any, processor: Any, name: str, columns: dict[str, list], batch_size: int) -> list[Tensor]:
        starts = range(0, 64, batch_size)
        blocks = [(columns["image"][start : start + batch_size], columns["text"][start:]) for start in starts]
        pairs = [[[(image, text) for text in some[: len(images)]] for image in images] for images, some in blocks]
        seen.extend(pair for block in pairs for row in block for pair in row)
        numbers = iter(range(len(seen)))
        # A logit whose probability says which pair it is.
        return [torch.tensor([[next(numbers) / 1e5 for _ in row] for row in block]).double() for block in pairs]

    def first_captions(corpus: Any, examples: list[dict[str, Any]]) -> list[str]:
        return [example["text"][0].text for example in examples]

    class Inputs(TaskInputs):
        item, corpus, method, processor = "image", None, None, None  # type: ignore[assignment]
        reader = SimpleNamespace(read_split=lambda split, count: (None, examples))  # type: ignore[assignment]

        def __init__(self) -> None: ...

    monkeypatch.setattr(calibration, "answers", answers)
    monkeypatch.setattr(calibration, "first_captions", first_captions)
    probabilities, truth, unit = calibration.match_probabilities(Inputs(), "test")
    logits = np.log(probabilities / (1 - probabilities)) * 1e5
    pairs = [seen[round(number)] for number in logits.tolist()]
    assert (truth == [text in {one.text for one in captions[image]} for image, text in pairs]).all()
    assert len({image for image, _ in pairs}) == len(set(unit)) == 64
    apart = [abs(image - texts.index(text)) for image, text in pairs if text in texts and text != texts[image]]
    assert np.mean(np.array(apart) > 8) > 0.5  # of a block of neighbors, none


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
        self.fused: list[float] = []  # sums of the pixels of images that texts were fused with

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
        self.fused += batch["image"].flatten(1).sum(1).tolist()
        return -self.gaussians(texts).log_sigma[:, 0]

    def itm_logits(self, batch: dict[str, Any]) -> Tensor:
        images, texts = (self.captions(name, batch[name]) for name in ("image", "text"))
        return torch.tensor([[20.0 * (text == image) - 10 for text in texts] for image in images])


def test_scores_of_a_method_that_knows_are_perfect(corpus: Corpus, tmp_path: Path) -> None:
    corpus = dataclasses.replace(corpus, splits={"test": corpus.rows("train")[:20]})  # of 16 different captions
    processor = fit_processor(Recipe.tiny(), dataclasses.replace(corpus, splits={"train": corpus.rows("test")}))
    reader = Reader(corpus, processor)
    _, examples = reader.read_split("test")
    knowing = Knowing(processor, examples)
    inputs = TaskInputs(knowing, processor, reader)
    assert ambiguity.task.applies_to(inputs)
    scores = {score.name: score for score in ambiguity.task.score(inputs)}
    expected = {"SRCC": 1.0, "fused_SRCC": -1.0, "R-precision": 1.0}
    for name, value in expected.items():
        assert scores[f"test/ambiguity/{name}"].value == pytest.approx(value), name
    counts = Counter(example["text"][0].text for example in examples)
    chances = [count / len(examples) for count in counts.values() for _ in range(2) if count > 1]
    assert scores["test/ambiguity/R-precision"].chance == pytest.approx(np.mean(chances))
    assert scores["test/ambiguity/log_sigma"].value == -scores["test/ambiguity/fused_log_sigma"].value
    items = ambiguity.captions_with_items(corpus, examples).values()
    firsts = processor.image([examples[numbers[0]]["image"] for numbers in items]).flatten(1).sum(1).tolist()
    # By chance, not the first item of every caption, which would correlate with the number of its items.
    assert 0 < sum(one != first for one, first in zip(knowing.fused, firsts, strict=True)) < len(firsts)
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
