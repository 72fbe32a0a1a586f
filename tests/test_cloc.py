"""CLOC: losses with and without regions, boxes that follow flips, and the ablations."""

import dataclasses
from typing import Any

import pyarrow as pa
import pytest
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.encoders.presets import clip as clip_towers
from polymodal.errors import UserError
from polymodal.evaluation.tasks.region_retrieval import region_text_scores
from polymodal.layers.prompter import PrompterPoolType
from polymodal.modalities.image_augmentation import WEAK
from polymodal.objectives.region_contrastive import region_text_contrastive
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
    # Each loss is a mean over regions, times the fraction of images with regions.
    scale, cosine = model.logit_scale(), 0.9
    of_half = region_text_contrastive(
        encoded["region"][:2][real[:2]], encoded["phrase"][:2][real[:2]], scale, real[:2].any(1), cosine
    )
    assert half["cloc"] == pytest.approx(float(of_half) / 2, rel=1e-5, abs=1e-6)
    assert whole["cloc"] == pytest.approx(
        float(region_text_contrastive(encoded["region"][real], encoded["phrase"][real], scale, real.any(1), cosine)),
        rel=1e-5,
    )
    # The error is that of the four corners, and 0 at the box itself.
    with torch.no_grad():
        model.box_head[-1].weight.zero_()
        model.box_head[-1].bias.copy_(batch["box"][0][real[0]][0])
        error = model.encode(batch)["error"]
    gap = batch["box"][real] - batch["box"][0][real[0]]
    torch.testing.assert_close(error[real], gap.square().sum(-1) / 4)
    assert float(error[real][0]) == pytest.approx(0, abs=1e-9)
    (encoded["region"].square() * torch.arange(1.0, 17)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.image_encoder.patch_embedding.parameters())


@pytest.mark.parametrize("pool_type", ["avg", "prompt"])
def test_a_predicted_box_has_its_corners_in_order(corpus: Corpus, pool_type: PrompterPoolType) -> None:
    processor = fit_processor(cloc.Recipe.tiny(), corpus)
    model = dataclasses.replace(cloc.Recipe.tiny(), prompter_pool_type=pool_type).build(processor).eval()
    with torch.no_grad():
        model.box_head[-1].weight.zero_()
        model.box_head[-1].bias.copy_(torch.tensor([0.7, 0.2, 0.3, 1.4]))
        batch = {"image": torch.zeros(2, 3, 32, 32), "text": processor.text(["red square", "dot"])}
        boxes, sure = model.predict_boxes(batch)["prompter"]
    torch.testing.assert_close(boxes, torch.tensor([0.3, 0.2, 0.7, 1.0]).expand(2, 1, 4))
    assert sure.tolist() == [[1], [1]]


def test_the_published_encoders_are_those_of_clip() -> None:
    towers, paper = clip_towers("ViT-B/16"), cloc.Recipe.paper()
    assert paper.image == towers.image
    assert paper.text == dataclasses.replace(towers.text, vocab_size=32_000)
    assert paper.text.causal
    assert paper.prompter_pool_type == "avg"
    with pytest.raises(UserError, match=r"image\.width 66 is to be a multiple of 4"):
        dataclasses.replace(cloc.Recipe.tiny(), image=dataclasses.replace(cloc.Recipe.tiny().image, width=66))


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


def with_regions(corpus: Corpus, regions: list[Any]) -> Corpus:
    place = corpus.table.schema.get_field_index("regions")
    field = corpus.table.schema.field(place)
    return dataclasses.replace(corpus, table=corpus.table.set_column(place, field, pa.array(regions, field.type)))


def test_regions_without_a_usable_one_are_refused(corpus: Corpus) -> None:
    whole = corpus.table.column("regions").to_pylist()
    for kept in ([], None, [{"name": " ", "box": [0, 0, 9, 9]}], [{"name": "dot", "box": [900, 0, 990, 9]}]):
        recipe = cloc.Recipe.tiny()
        none = [kept if row in corpus.rows("train") else regions for row, regions in enumerate(whole)]
        with pytest.raises(UserError, match=r"No training row of .* has a region with a name and a box"):
            fit_processor(recipe, with_regions(corpus, none))
        fit_processor(dataclasses.replace(recipe, region_weight=0.0), with_regions(corpus, none))
        none[int(corpus.rows("train")[-1])] = whole[0]  # one is enough
        fit_processor(recipe, with_regions(corpus, none))


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
