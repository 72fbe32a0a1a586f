"""ALPRO: the released losses and pseudo-labels, the frozen prompter, prompts, stages, capabilities."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.processor import Processor, fit_processor
from polymodal.errors import MissingModality, UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.modalities import Text
from polymodal.modalities.boxes import boxes_to_patch_mask
from polymodal.modalities.text import Tokens
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


def test_masked_and_unknown_tokens_are_not_seen(processor: Processor, clips: Corpus) -> None:
    model = built(processor, text=dataclasses.replace(TINY.text, context_length=40))
    batch = batch_of(processor, clips, count=40)
    masked, mask, text = batch["mlm_text"].ids, batch["masked_tokens"], batch["text"]
    assert torch.equal(masked[~mask], text.ids[~mask])
    assert not bool((mask & ~text.content_mask).any())
    assert float((masked[mask] == processor.tokenizer.vocab_size).float().mean()) == pytest.approx(0.8, abs=0.1)
    longer = batch | {"text": Tokens(F.pad(text.ids, (0, 2), value=7), text.lengths)}
    assert torch.allclose(model.itm_logits(batch), model.itm_logits(longer), atol=1e-5)
    answers = processor(answer=["no such answer", processor.answers[0]])["answer"]
    assert answers.tolist() == [UNKNOWN_ANSWER, 0]
    last = batch_of(processor, clips, "finetuning_batch") | {"answer": answers[:1].expand(4)}
    losses = model.finetuning_losses(last)
    assert losses.keys() == {"itc", "itm", "vqa"}
    assert float(losses["vqa"].detach()) == 0


def test_the_prompter_and_pem_learn(processor: Processor, clips: Corpus) -> None:
    for make, method, name in (("paired_batch", "prompter_losses", "prompter"), ("training_batch", "losses", "pem")):
        model, batch, values = built(processor).train(), batch_of(processor, clips, make), []
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(12):
            loss = getattr(model, method)(batch)[name]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        assert values[-1] < values[0], name


def test_stages_and_scores(processor: Processor, clips: Corpus, tmp_path: Path) -> None:
    assert [stage.lr_scale for stage in alpro.Recipe.paper().stages()] == [1, 1, 0.25]
    names = [name for name, _ in built(processor).named_parameters()]
    frozen = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in alpro.METHOD)]
    assert frozen == [name for name in names if name.startswith("prompter.")]
    fractions = [stage.fraction for stage in active_stages(dataclasses.replace(TINY, use_pem=False))]
    assert fractions == pytest.approx([0.75, 0.25]), "pre-training takes the prompter's part"
    model, batch = built(processor, use_itc=False, use_pem=False), batch_of(processor, clips)
    assert set(model.losses(batch)) == {"itm", "mlm"}
    run: Any = train(TINY, clips, Budget(steps=6), out=tmp_path / "run")
    scores = {score.name.removeprefix("test/") for score in evaluate(run, clips)}
    assert {"text_to_video/R@1", "matching/text_to_video/R@1", "vqa/object/accuracy", "regions/top-1"} <= scores
    assert torch.equal(load_run(tmp_path / "run").model.itm_logits(batch), run.model.eval().itm_logits(batch))
    for changes in ({"video": dataclasses.replace(TINY.video, width=32)}, {"video_prompts": ("a video",)}):
        with pytest.raises(UserError, match=r"are the same|where the entity stands"):
            dataclasses.replace(TINY, **changes)


def test_questions_without_captions_are_refused_with_what_is_missing(clips: Corpus) -> None:
    silent = dataclasses.replace(
        clips, columns={name: kind for name, kind in clips.columns.items() if not isinstance(kind, Text)}
    )
    with pytest.raises(MissingModality, match=r"no captions.*mono_internvl"):
        TINY.training_corpora(silent)
