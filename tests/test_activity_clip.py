"""Activity CLIP: what each rung of the ladder reads and trains, and its corpus."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora.emoji_activities import activity_of
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
    names, processor = list(corpus.columns["label"].names), fit_processor(recipe, corpus)
    image = model.encode_image(batch["image"])
    for place, name in enumerate(names):
        prompts = model.encode_text(processor.text([f"a person who is {name}", name]))
        cosine = image @ F.normalize(prompts.mean(0), dim=0)
        torch.testing.assert_close(model.classify(batch)[:, place], model.logit_scale() * cosine)
    other = {**batch, "label": batch["label"].flip(0)}
    assert torch.equal(model.classify(batch), model.classify(other))
    assert "text" not in batch


@pytest.mark.parametrize(
    "choices",
    [
        {"architecture": "feed_forward", "pretraining": "none", "adaptation": "fine_tuned"},
        {"pretraining": "labels", "pretraining_column": "label", "adaptation": "linear"},
        {"adaptation": "zero_shot"},
        {"pretraining": "shuffled_captions"},
    ],
)
def test_a_rung_trains_and_classifies(choices: Any, corpus: Corpus) -> None:
    run = train(dataclasses.replace(TINY, **choices), corpus, pm.Budget(steps=2))
    names = {"pre-training", "adaptation"} if run.recipe.stages()[0].fraction == 0.5 else {""}
    assert {entry.get("stage", "") for entry in run.history if "losses" in entry} == names
    scores = {score.name: score.value for score in pm.evaluate(run, corpus)}
    assert 0 <= scores["test/classify_label/macro_F1"] <= 1


def test_captions_of_m2_do_not_name_the_class(corpus: Corpus) -> None:
    assert without_these_words("A Red, big red_nosed square", words_of(["red"])) == "A big square"
    _, model, _ = built(corpus, adaptation="multimodal", masked_words=("square",))
    examples = Reader(corpus, fit_processor(TINY, corpus)).read_all(corpus.rows("train"))[1]
    assert {model.caption_of(example["text"]) for example in examples} == {"a", "a disk", "a bar", "a cross"}
    scores = {score.name for score in pm.evaluate(train(dataclasses.replace(TINY, adaptation="multimodal"), corpus,
                                                        pm.Budget(steps=2)), corpus)}  # fmt: skip
    assert "test/classify_label_with_shuffled_caption/accuracy" in scores
    assert not [name for name in scores if name.startswith("test/classify_label/")]


def test_pretraining_reads_no_labelled_row_and_scratch_forgets_what_it_began_with(
    corpus: Corpus, tmp_path: Path
) -> None:
    some = without_labels(corpus, ("train",), 2)
    recipe = dataclasses.replace(TINY, pretrain_on="unlabelled", pretraining="labels", adaptation="fine_tuned")
    recipe = dataclasses.replace(recipe, pretraining_column="label")
    assert recipe.pretraining_rows(some, None).tolist() == corpus.rows("train")[::2].tolist()
    with pytest.raises(UserError, match="--pretrain-on all"):
        fit_processor(recipe, corpus)
    given = dataclasses.replace(TINY, pretraining="given", adaptation="linear")
    runs = {"start": train(TINY, corpus, pm.Budget(steps=2), out=tmp_path / "start")}
    for name, choice in (("given", "given"), ("none", "none")):
        one = dataclasses.replace(given, pretraining=choice)
        runs[name] = train(one, corpus, pm.Budget(steps=1), init=tmp_path / "start", seed=1)
    weights = {name: run.model.state_dict()["image_encoder.patch_embedding.weight"] for name, run in runs.items()}
    assert torch.equal(weights["given"], weights["start"])
    assert not torch.allclose(weights["none"], weights["start"])


def test_activities_are_by_words_of_names() -> None:
    names = ("woman running: facing right", "person tipping hand", "man cook", "cookie", "person standing", "deaf cook")
    assert [activity_of(name) for name in names] == ["moving", "gesturing", "working", None, None, None]
