"""Activity CLIP: what each rung of the ladder reads and trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.modalities.text_augmentation import without_these_words, words_of
from polymodal.recipes.dual_encoders.activity_clip import Recipe
from polymodal.rng import ExampleRNG
from polymodal.training.trainer import train
from test_missing_labels import without_labels

TINY = Recipe.tiny()


def built(corpus: Corpus, **choices: Any) -> tuple[Any, Any, Any]:
    recipe = dataclasses.replace(TINY, **choices)
    processor = fit_processor(recipe, corpus)
    torch.manual_seed(0)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    return recipe, recipe.build(processor).eval(), recipe.labelled_batch(examples, processor, ExampleRNG.of(0, 0, 4))


def test_the_contrastive_classifier_compares_images_with_prompts_alone(corpus: Corpus) -> None:
    recipe, model, batch = built(corpus, templates=("a person who is {}", "{}"))
    processor, image = fit_processor(recipe, corpus), model.encode_image(batch["image"])
    for place, name in enumerate(corpus.columns["label"].names):
        prompts = model.encode_text(processor.text([f"a person who is {name}", name]))
        cosine = image @ F.normalize(prompts.mean(0), dim=0)
        torch.testing.assert_close(model.classify(batch)[:, place], model.logit_scale() * cosine)
    assert torch.equal(model.classify(batch), model.classify({**batch, "label": batch["label"].flip(0)}))
    assert "text" not in batch


RUNGS: list[dict[str, Any]] = [
    {"architecture": "feed_forward", "pretraining": "none", "adaptation": "fine_tuned"},
    {"pretraining": "labels", "pretraining_column": "label", "adaptation": "linear"},
    {"adaptation": "zero_shot"},
    {"pretraining": "shuffled_captions"},
]


@pytest.mark.parametrize("choices", RUNGS)
def test_a_rung_trains_and_classifies(choices: Any, corpus: Corpus) -> None:
    run = train(dataclasses.replace(TINY, **choices), corpus, pm.Budget(steps=2))
    names = [stage.name for stage in run.recipe.stages() if stage.fraction]
    assert {entry.get("stage", names[0]) for entry in run.history if "losses" in entry} == {*names}
    assert 0 <= {score.name: score.value for score in pm.evaluate(run, corpus)}["test/classify_label/macro_F1"] <= 1


def test_captions_of_m2_do_not_name_the_class(corpus: Corpus) -> None:
    assert without_these_words("A Red, big red_nosed square", words_of(["red"])) == "A big square"
    model = built(corpus, adaptation="multimodal", masked_words=("square",))[1]
    examples = Reader(corpus, fit_processor(TINY, corpus)).read_all(corpus.rows("train"))[1]
    assert {model.caption_of(example["text"]) for example in examples} == {"a", "a disk", "a bar", "a cross"}
    run = train(dataclasses.replace(TINY, adaptation="multimodal"), corpus, pm.Budget(steps=1))
    scores = {score.name for score in pm.evaluate(run, corpus)}
    assert "test/classify_label_with_shuffled_caption/accuracy" in scores
    assert not [name for name in scores if name.startswith("test/classify_label/")]


def test_pretraining_reads_no_labelled_row_and_scratch_forgets_the_start(corpus: Corpus, tmp_path: Path) -> None:
    some = without_labels(corpus, ("train",), 2)
    recipe = dataclasses.replace(TINY, pretrain_on="unlabelled")
    assert recipe.pretraining_rows(some, None).tolist() == corpus.rows("train")[::2].tolist()
    by_label = dataclasses.replace(recipe, pretraining="labels", pretraining_column="label", adaptation="fine_tuned")
    for one, what in ((recipe, "with text have"), (by_label, "with image and label have")):
        with pytest.raises(UserError, match=f"{what}.*--pretrain-on all"):
            fit_processor(one, corpus)
    runs = {"start": train(TINY, corpus, pm.Budget(steps=2), out=tmp_path / "start")}
    for name in ("given", "none"):
        one = dataclasses.replace(TINY, pretraining=name, adaptation="linear")
        runs[name] = train(one, corpus, pm.Budget(steps=1), init=tmp_path / "start", seed=1)
    weights = {name: run.model.state_dict()["image_encoder.patch_embedding.weight"] for name, run in runs.items()}
    assert [torch.allclose(weights[name], weights["start"]) for name in ("given", "none")] == [True, False]


def test_a_tower_from_scratch_learns_like_the_head_and_zero_shot_needs_pretraining() -> None:
    for pretraining, scale in (("none", 1.0), ("captions", 0.1), ("given", 0.1)):
        assert {*Recipe(pretraining=pretraining).stages()[1].lr_scales.values()} == {scale}
    with pytest.raises(UserError, match="--pretraining-fraction above 0"):
        Recipe(adaptation="zero_shot", pretraining_fraction=0.0)


def test_examples_without_a_category_are_not_pretrained_on(corpus: Corpus) -> None:
    some = without_labels(corpus, ("train",), 2)
    recipe = dataclasses.replace(TINY, pretraining="labels", pretraining_column="label", adaptation="linear")
    assert recipe.pretraining_rows(some, None).tolist() == corpus.rows("train")[1::2].tolist()
    train(recipe, some, pm.Budget(steps=2))
