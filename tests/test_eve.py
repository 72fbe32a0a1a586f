"""EVE: what the masked passes see, stages, and what is fine-tuned."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.recipes.fusion_encoders import eve
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages

TINY = eve.Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def built(processor: Processor, **changes: object) -> eve.EVE:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, name: str = "training_batch", count: int = 4) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:count]]
    return getattr(TINY, name)(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_losses_are_of_masked_positions_alone_and_text_reaches_patches(processor: Processor, corpus: Corpus) -> None:
    model, batch = built(processor), batch_of(processor, corpus)
    losses = model.losses(batch)
    text, mask = batch["text"], batch["masked_tokens"]
    ids = torch.where(mask, text.ids, 5)
    assert torch.equal(model.losses(batch | {"text": dataclasses.replace(text, ids=ids)})["mlm"], losses["mlm"])
    image = batch["image"].unfold(2, 16, 16).unfold(3, 16, 16).clone()  # 2 x 2 patches
    image[batch["masked_patches"].view(-1, 1, 2, 2).expand(-1, 3, -1, -1)] *= -1
    other = {**batch, "image": image.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)}
    assert torch.equal(model.losses(other)["mlm"], losses["mlm"])  # masked patches are not seen
    assert not torch.equal(model.losses(other)["mim"], losses["mim"])  # but are what is predicted
    words = {**batch, "mlm_text": dataclasses.replace(batch["mlm_text"], ids=batch["mlm_text"].ids.flip(0))}
    assert not torch.equal(model.losses(words)["mim"], losses["mim"])
    whole = torch.arange(4).expand(4, -1)
    torch.testing.assert_close(model.encoder(batch["image"], kept=whole).image, model.encoder(batch["image"]).image)
    apart = built(processor, joint_masking=False)  # MLM sees all patches, MIM all words
    assert not torch.equal(apart.losses(other)["mlm"], apart.losses(batch)["mlm"])
    assert torch.equal(apart.losses(words)["mim"], apart.losses(batch)["mim"])
    assert built(processor, use_itc_itm=True).losses(batch).keys() == {*losses, "itc", "itm"}


def test_stages_and_what_is_fine_tuned(processor: Processor, corpus: Corpus) -> None:
    batch = batch_of(processor, corpus, "finetuning_batch")
    for kind, names in {"both": {"itc", "itm", "vqa"}, "retrieval": {"itc", "itm"}, "vqa": {"vqa"}}.items():
        recipe = dataclasses.replace(TINY, finetuning=kind)
        given = batch if kind != "retrieval" else {name: batch[name] for name in batch if name != "question"}
        model = recipe.build(processor).eval()
        assert model.finetuning_losses(given).keys() == {*names, "balance"}
        assert ("itm_head.*" in active_stages(recipe)[1].trainable) is (kind != "vqa")
    images_alone = dataclasses.replace(corpus, columns={"image": corpus.columns["image"]})
    with pytest.raises(UserError, match="write --finetuning retrieval"):
        dataclasses.replace(TINY, finetuning="vqa").training_corpora(images_alone)


def test_pairs_without_a_question_are_trained_on_without_an_answer(processor: Processor, corpus: Corpus) -> None:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:4]]
    del examples[1]["questions"]
    batch = TINY.finetuning_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    assert (batch["answer"] == UNKNOWN_ANSWER).tolist() == [False, True, False, False]
    model, losses = built(processor), []
    for rows in ([0, 1, 2, 3], [0, 2, 3]):
        question = dataclasses.replace(
            batch["question"], ids=batch["question"].ids[rows], lengths=batch["question"].lengths[rows]
        )
        some = {"image": batch["image"][rows], "question": question, "answer": batch["answer"][rows]}
        losses.append(model.answer_losses(some)[0]["vqa"])
    torch.testing.assert_close(losses[0], losses[1])
