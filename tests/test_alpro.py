"""ALPRO: the released losses and pseudo-labels, the frozen prompter, prompts, stages, capabilities."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.modalities.boxes import boxes_to_patch_mask
from polymodal.modalities.text import Tokens
from polymodal.objectives.distillation import confident_cross_entropy
from polymodal.recipes.video import alpro
from polymodal.rng import ExampleRNG
from polymodal.training import load_run, train
from polymodal.training.stages import active_stages
from polymodal.types import Budget
from some_clips import some_clips

TINY = dataclasses.replace(alpro.Recipe.tiny(), use_pem=True, pseudo_label_threshold=0.0)


@pytest.fixture(scope="module")
def clips() -> Corpus:
    return some_clips()


@pytest.fixture(scope="module")
def processor(clips: Corpus) -> Processor:
    return fit_processor(TINY, clips)


def built(processor: Processor, **changes: object) -> alpro.ALPRO:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def batch_of(processor: Processor, corpus: Corpus, make: str = "training_batch", count: int = 4) -> dict:
    examples = [processor.load_example(corpus, row) for row in corpus.rows("train").tolist()[:count]]
    return getattr(TINY, make)(examples, processor, ExampleRNG.of(0, 0, len(examples)))


def test_the_prompter_is_frozen_and_sees_the_crop_alone(processor: Processor, clips: Corpus) -> None:
    model, batch = built(processor).train(), batch_of(processor, clips)
    seen: list[torch.Tensor] = []
    model.prompter.video_encoder.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    sum(model.losses(batch).values()).backward()
    assert all(parameter.grad is None for parameter in model.prompter.parameters())
    assert not model.prompter.training
    assert all(p.grad is not None for name, p in model.named_parameters() if name.startswith(("pem_head", "fusion")))
    inside = boxes_to_patch_mask(batch["box"], 2)
    assert torch.equal(seen[0].abs().sum((1, 2)).view(4, 2, 16, 2, 16).sum((2, 4)).flatten(1) > 0, inside)
    again = built(processor)
    again.load_state_dict(model.state_dict())
    assert bool(again.prompter.prompts_embedded), "a run that is loaded keeps the embeddings of prompts"


def test_an_unsure_prompter_teaches_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.1, 0.7]])
    by_hand = -(labels * logits.log_softmax(1)).sum(1)[[0, 2]].mean()
    assert torch.allclose(confident_cross_entropy(logits, labels, 0.3), by_hand), "of entity 0, too"
    assert confident_cross_entropy(logits, labels, 0.9).item() == 0


def test_prompts_are_in_words_of_the_captions(processor: Processor, clips: Corpus) -> None:
    captions = [caption.text for row in clips.rows("train") for caption in clips.value(int(row), "captions")]
    known = set(processor.text(captions).ids.flatten().tolist())
    ids = torch.cat([prompts.ids.flatten() for kind in built(processor).prompter.prompts for prompts in kind])
    assert float(torch.isin(ids, torch.tensor(sorted(known))).float().mean()) > 0.9
    assert len(set(alpro.Recipe.paper().video_prompts)) == len(set(alpro.Recipe.paper().image_prompts)) == 12


def test_masked_and_unknown_tokens_are_not_seen(processor: Processor, clips: Corpus) -> None:
    model, batch = built(processor), batch_of(processor, clips, count=40)
    masked, mask, ids = batch["mlm_text"].ids, batch["masked_tokens"], batch["text"].ids
    assert torch.equal(masked[~mask], ids[~mask])
    assert float((masked[mask] == processor.tokenizer.vocab_size).float().mean()) == pytest.approx(0.8, abs=0.1)
    text = batch["text"]
    longer = Tokens(F.pad(text.ids, (0, 2), value=7), text.lengths)
    if longer.ids.shape[1] <= TINY.text.context_length:
        assert torch.allclose(model.itm_logits(batch), model.itm_logits(batch | {"text": longer}), atol=1e-5)
    last = batch_of(processor, clips, "finetuning_batch") | {"answer": torch.full((4,), UNKNOWN_ANSWER)}
    assert float(model.finetuning_losses(last)["vqa"].detach()) == 0


def test_stages_and_scores(processor: Processor, clips: Corpus, tmp_path: Path) -> None:
    assert [stage.lr_scale for stage in alpro.Recipe.paper().stages()] == [1, 1, 0.25]
    fractions = [stage.fraction for stage in active_stages(dataclasses.replace(TINY, use_pem=False))]
    assert fractions == pytest.approx([0.75, 0.25]), "pre-training takes the prompter's part"
    model, batch = built(processor, use_itc=False, use_pem=False), batch_of(processor, clips)
    assert set(model.losses(batch)) == {"itm", "mlm"}
    run: Any = train(TINY, clips, Budget(steps=6), out=tmp_path / "run")
    names = {score.name.removeprefix("test/") for score in evaluate(run, clips)}
    assert {"text_to_video/R@1", "matching/text_to_video/R@1", "vqa/object/accuracy", "regions/top-1"} <= names
    assert torch.equal(load_run(tmp_path / "run").model.itm_logits(batch), run.model.eval().itm_logits(batch))
    for changes, sentence in (
        ({"video": dataclasses.replace(TINY.video, width=32)}, "are the same"),
        ({"video_prompts": ("a video",)}, "where the entity stands"),
    ):
        with pytest.raises(UserError, match=sentence):
            dataclasses.replace(TINY, **changes)
