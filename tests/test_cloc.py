"""CLOC: losses with and without regions, boxes that follow flips, and the ablations."""

import dataclasses

import pytest
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.tasks.region_retrieval import region_text_scores
from polymodal.modalities.image_augmentation import WEAK
from polymodal.recipes.dual_encoders import clip, cloc
from polymodal.rng import ExampleRNG


def test_losses_without_regions_are_those_of_clip_and_lambda_is_their_fraction(corpus: Corpus) -> None:
    recipe = dataclasses.replace(cloc.Recipe.tiny(), hflip_prob=0.0)
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    torch.manual_seed(0)
    model = recipe.build(processor).eval()

    def losses(kept: int) -> dict[str, float]:
        some = [
            example | {"regions": example["regions"] if place < kept else []} for place, example in enumerate(examples)
        ]
        return {
            k: float(v) for k, v in model.losses(recipe.training_batch(some, processor, ExampleRNG.of(0, 0, 4))).items()
        }

    none, half, whole = (losses(count) for count in (0, 2, 4))
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert none["cloc"] == none["grounding"] == 0
    assert none["clip"] == pytest.approx(
        float(clip.CLIP.contrastive_losses(model, model.embed(batch))["contrastive"]), rel=1e-5
    )
    encoded = model.encode(batch)
    real = batch["is_region"] > 0
    assert real.sum(1).tolist() == [1, 1, 1, 1]  # one object an image
    assert whole["grounding"] == pytest.approx(float(encoded["error"][real].mean()), rel=1e-5)
    assert half["grounding"] == pytest.approx(float(encoded["error"][:2][real[:2]].mean()) / 2, rel=1e-5)
    # The error is that of the four corners, and 0 at the box itself.
    located = model.predict_boxes(
        {"image": batch["image"], "text": processor.text([e["regions"][0].phrase for e in examples])}
    )
    assert located["prompter"][0].shape == (4, 1, 4)
    (encoded["region"].square() * torch.arange(1.0, 17)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.image_encoder.patch_embedding.parameters())


def test_boxes_follow_a_flip(corpus: Corpus) -> None:
    recipe = cloc.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    plain, flipped = (
        dataclasses.replace(recipe, hflip_prob=p).training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
        for p in (0.0, 1.0)
    )
    torch.testing.assert_close(flipped["image"], plain["image"].flip(-1))
    real = plain["is_region"] > 0
    x, y = plain["box"][real], flipped["box"][real]
    torch.testing.assert_close(y, torch.stack([1 - x[:, 2], x[:, 1], 1 - x[:, 0], x[:, 3]], 1))
    with pytest.raises(UserError, match="no random crop"):
        dataclasses.replace(recipe, augmentation=WEAK)


def test_the_prompter_is_light_and_ablations_are_smaller(corpus: Corpus) -> None:
    processor = fit_processor(cloc.Recipe.tiny(), corpus)
    base = dict(cloc.Recipe.tiny().build(processor).named_parameters())
    roi = dataclasses.replace(cloc.Recipe.tiny(), pooling="roi", grounding_weight=0.0).build(processor)
    assert {name.partition(".")[0] for name in base.keys() - dict(roi.named_parameters()).keys()} == {
        "prompter",
        "box_head",
    }
    with torch.device("meta"):
        paper = cloc.CLOC(cloc.Recipe.paper(), 32_000)
    size = {name: sum(p.numel() for p in getattr(paper, name).parameters()) for name in ("prompter", "image_encoder")}
    assert size["prompter"] < size["image_encoder"] / 10
    names = [score.name for score in region_text_scores(roi, processor, Reader(corpus, processor), "test")]
    assert "test/text_to_region/R@10" in names
    assert "test/region_grounding/mean_IoU" not in names
