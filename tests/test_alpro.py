"""ALPRO: the released losses and pseudo-labels, the frozen prompter, prompts, stages, capabilities."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.video import VideoEncoderConfig
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

GOLDEN = Path(__file__).parent / "golden" / "alpro.npz"
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


def weights(name: str, *shape: int) -> torch.Tensor:
    return 0.3 * torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)).float()


def test_losses_and_pseudo_labels_are_those_of_the_released_code(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    table, text = weights("table", 20, 8), Tokens(golden["ids"], golden["lengths"])
    templates = [golden["prompts"], golden["prompts"].flip(0)]
    prompts = [[Tokens(p.view(3, 4, 4)[:, e], torch.full((3,), 4)) for e in range(4)] for p in templates]
    video, words = VideoEncoderConfig(1, 4, 2, 8, 1, 2), dataclasses.replace(TINY.text, width=8)
    recipe = dataclasses.replace(TINY, video=video, text=words, embed_dim=6)
    model = alpro.ALPRO(recipe, 20, prompts, 0).eval()
    visual, text_weight = weights("video_projection.weight", 6, 8), weights("text_projection.weight", 6, 8)

    def embedded(ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(table[ids][:, 0] @ text_weight.T, dim=-1)

    def fuse(words: torch.Tensor, mask: torch.Tensor, visual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, mask = torch.cat([words, visual], 1), torch.cat([mask, mask.new_ones(visual.shape[:2])], 1)[..., None]
        fused = torch.tanh(x + (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True))
        return fused[:, : words.shape[1]], fused[:, words.shape[1] :]

    embeddings = F.normalize(golden["visual"][:, 0] @ visual.T, dim=-1)
    monkeypatch.setattr(model, "video_tokens", lambda _: (golden["visual"], embeddings))
    monkeypatch.setattr(model, "text_tokens", lambda text: (table[text.ids], embedded(text.ids)))
    monkeypatch.setattr(model, "fuse", fuse)
    crop = F.normalize(golden["crop"][:, 0] @ visual.T, dim=-1)
    monkeypatch.setattr(model.prompter, "encode_video", lambda _: crop)
    monkeypatch.setattr(model.prompter, "encode_text", lambda text: embedded(text.ids))
    with torch.no_grad():
        for head in ("itm_head", "pem_head"):
            for name, parameter in model.get_submodule(head).named_parameters():
                parameter.copy_(weights(f"{head}.{name}", *parameter.shape))
    labels = [model.prompter.probabilities(torch.zeros(2, frames, 3, 4, 4)) for frames in (2, 1)]
    for ours, bank, theirs in zip(labels, ("video", "image"), ("pseudo_labels", "image_pseudo_labels"), strict=True):
        assert torch.allclose(model.prompter.prompt_embeddings[int(bank == "image")], golden[f"{bank}_prompt_feat"])
        assert torch.allclose(ours, golden[theirs], atol=1e-5)
    # Boxes of the golden masks: all patches but the first, and all but the bottom left one, are in no rectangle.
    monkeypatch.setattr(alpro, "boxes_to_patch_mask", lambda *_: golden["outside"].flatten(1) == 0)
    monkeypatch.setattr(model, "mlm_loss", lambda *_: torch.zeros(()))
    zeros = {"video": torch.zeros(2, 2, 3, 4, 4), "box": torch.zeros(2, 4), "mlm_text": text}
    losses = model.losses({**zeros, "text": text, "group": torch.arange(2.0), "masked_tokens": text.mask})
    for name in ("itc", "itm", "pem"):
        assert float(losses[name].detach()) == pytest.approx(float(golden[name]), rel=1e-5), name


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
