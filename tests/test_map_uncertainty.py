"""MAP: points are the limit of no samples, false images, and which tokens have a margin."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.errors import UserError
from polymodal.evaluation.question_answering import question_lines, question_scores
from polymodal.models.fusion_encoder import FusionEncoderConfig
from polymodal.recipes.fusion_encoders.map_uncertainty import MAP, Recipe
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages

TINY = Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def built(processor: Processor, **changes: object) -> MAP:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, count: int = 4) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:count]]
    return TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_without_samples_losses_after_fusion_are_those_of_points(processor: Processor, corpus: Corpus) -> None:
    batch = batch_of(processor, corpus)
    points, no_samples = built(processor, tokens="points"), built(processor, samples=0)
    losses, others = points.losses(batch), no_samples.losses(batch)
    assert torch.equal(losses["itm"], others["itm"])
    assert torch.equal(losses["mlm"], others["mlm"])
    assert losses.keys() == others.keys() - {"margin"}
    assert losses["contrastive"] != others["contrastive"]
    sampled, again = (built(processor).losses(batch | {"seed": batch["seed"] + more}) for more in (0, 100))
    assert len({float(one["mlm"].detach()) for one in (losses, sampled, again)}) == 3
    assert torch.equal(sampled["contrastive"], again["contrastive"])


def test_copies_stay_with_their_pair(processor: Processor, corpus: Corpus) -> None:
    model, batch = built(processor, samples=3), batch_of(processor, corpus)

    def copies(image: Tensor) -> Tensor:
        text = batch["text"]
        return model.pooled_copies(model.fuse(model.text_tokens(text), text, model.image_tokens(image)), batch["seed"])

    one, other = copies(batch["image"]), copies(torch.cat([batch["image"][:2], -batch["image"][2:]]))
    assert (one != other).any(-1).tolist() == [[False, False, True, True]] * 4
    assert (one[0] != one[1]).any()


def test_labels_of_matching_follow_false_images(processor: Processor, corpus: Corpus) -> None:
    model, batch = built(processor), batch_of(processor, corpus)
    patches, never = model.image_tokens(batch["image"]), torch.full((4, 2), 0.9)
    model.itm_head.weight.data, model.itm_head.bias.data = torch.zeros(2, 32), torch.tensor([-30.0, 30.0])  # all match
    assert float(model.pair_losses(batch | {"uniform": never}, patches)["itm"].detach()) < 1e-6
    one_false = never.index_fill(0, torch.tensor([2]), 0.1)
    assert float(model.pair_losses(batch | {"uniform": one_false}, patches)["itm"].detach()) == pytest.approx(60 / 4)


def test_margin_is_of_all_tokens_in_mlm_and_of_the_first_in_matching(processor: Processor, corpus: Corpus) -> None:
    model, batch = built(processor, entropy_margin=50.0), batch_of(processor, corpus)
    margin = 50.0 * 16 - 8 * (np.log(2 * np.pi) + 1)
    with torch.no_grad():
        for name in ("image", "text"):
            model.get_submodule(f"{name}_pde").log_sigma_mlp[2].weight.zero_()
            model.get_submodule(f"{name}_pde").log_sigma_projection.weight.zero_()
    assert float(model.losses(batch)["margin"].detach()) == pytest.approx(0.01 * 2 * margin, rel=1e-5)
    assert float(model.finetuning_losses(batch)["margin"].detach()) == pytest.approx(0.01 * margin, rel=1e-5)


def test_stages_and_refusals(processor: Processor) -> None:
    assert [stage.name for stage in active_stages(dataclasses.replace(TINY, finetune_fraction=0.0))] == ["pre-training"]
    with pytest.raises(UserError, match=r"leave out --fusion\.fusion"):
        dataclasses.replace(TINY, fusion=FusionEncoderConfig("merged_attention", 16, 1))
    points, wide = built(processor, tokens="points"), built(processor, tokens="wide_points")
    assert sum(one.numel() for one in points.parameters()) == sum(one.numel() for one in wide.parameters())


def test_examples_without_questions_have_no_part_in_answers(
    processor: Processor, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = built(processor), Reader(corpus, processor)
    rows, examples = reader.read_split("test", 6)
    for example in examples[::2]:
        del example["questions"]
    monkeypatch.setattr(Reader, "read_split", lambda *_: (rows, examples))
    accuracy = question_scores(model, processor, reader, "test")[0]
    assert (accuracy.name, len(accuracy.clusters)) == ("test/vqa/accuracy", len(examples[1::2]))
    lines = question_lines(model, processor, examples, "image")
    assert [bool(some) for some in lines] == [number % 2 == 1 for number in range(len(examples))]
    assert question_lines(model, processor, examples[:1], "image") == [[]]


def test_a_pretrained_text_encoder_masks_by_its_own_token(bert_folder: Path, corpus: Corpus) -> None:
    recipe = dataclasses.replace(TINY, text=PretrainedTextConfig.read(str(bert_folder)))
    processor = fit_processor(recipe, corpus)
    with pytest.raises(UserError, match="has a mask token"):
        batch_of(processor, corpus)
    tokenizer = processor.text.tokenizer.tokenizer
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(5)
    batch = batch_of(processor, corpus)
    assert (batch["mlm_text"].ids[batch["masked_tokens"]] == 5).any()
    assert recipe.build(processor).losses(batch)["mlm"].isfinite()
