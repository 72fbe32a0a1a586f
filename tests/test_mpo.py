"""MPO: the mixture of losses against the released trainer, the reference, and what a run may start from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.data.conversation import DESCRIBE, Turn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import pad_sequences
from polymodal.encoders.pretrained_language_model import PretrainedDecoderConfig
from polymodal.errors import UserError
from polymodal.layers.lora import add_lora
from polymodal.models.vision_language_model import TokenLosses
from polymodal.objectives.autoregressive import next_token_losses
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.preference import mpo
from polymodal.rng import ExampleRNG
from polymodal.types import Budget

GOLDEN = Path(__file__).parent / "golden" / "mpo.npz"
TINY = mpo.Recipe.tiny()


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return fit_processor(TINY, corpus)


def method(processor: Processor, **changes: object) -> mpo.MPO:
    """As it is before its first step."""
    torch.manual_seed(0)
    model = dataclasses.replace(TINY, **changes).build(processor)
    model.update_reference()
    return model.train()


def batch_of(processor: Processor, corpus: Corpus) -> dict:
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])
    return TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))


def test_losses_and_gradients_are_those_of_the_released_trainer(processor: Processor) -> None:
    """tests/golden/mpo.txt: three steps of sigmoid,bco_pair and SFT, with the running mean of rewards."""
    given = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    model = method(processor)
    for step, labels in enumerate(given["labels"]):
        logits = {"policy": given["policy_logits"][step].requires_grad_(), "reference": given["reference_logits"][step]}
        rows, before = (labels[:, 1:] != -100).nonzero().unbind(1)
        nats = {n: next_token_losses(own[rows, before], labels[rows, before + 1]) for n, own in logits.items()}
        model.token_losses = lambda _, own=nats["policy"], rows=rows: TokenLosses(own, rows, rows)
        model.reference.token_losses = lambda _, own=nats["reference"], rows=rows: TokenLosses(own, rows, rows)
        total = sum(model.losses({"sequences": labels}).values())
        total.backward()
        torch.testing.assert_close(total.detach(), given["mpo_loss"][step], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits["policy"].grad, given["mpo_gradient"][step], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.reward_shift.delta, given["running_mean"][step], atol=1e-5, rtol=1e-5)


def test_before_the_first_step_no_answer_has_a_reward(processor: Processor, corpus: Corpus) -> None:
    model = method(processor)
    losses = model.losses(batch_of(processor, corpus))
    assert losses["dpo"].item() == pytest.approx(0.8 * math.log(2), abs=1e-5)
    assert losses["bco"].item() == pytest.approx(0.2 * 2 * math.log(2), abs=1e-5)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in model.reference.parameters())
    assert all(parameter.grad is not None for parameter in model.language_model.parameters())


def test_answers_in_a_batch_are_as_likely_as_alone(processor: Processor, corpus: Corpus) -> None:
    model, form = method(processor).eval(), processor.conversation
    found = model.log_probabilities(batch_of(processor, corpus))
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])
    for number, (example, rng) in enumerate(zip(examples, ExampleRNG.of(0, 0, 4).generators, strict=True)):
        pair = mpo.one_pair(example["preferences"], rng)
        for column, text in enumerate((pair.chosen, pair.rejected)):
            alone = pad_sequences([form.sequence(example["image"], [Turn(text, pair.question)])])
            expected = model.log_likelihood({"sequences": alone})[0]
            torch.testing.assert_close(found["policy"][number, column], expected, atol=1e-4, rtol=1e-4)
            answer = alone.ids[0][alone.predicted[0]]
            assert found["length"][number, column] == len(answer)
            assert answer[-1] == form.end, "the end mark counts"


def test_a_shared_prefix_cancels_in_the_margin(processor: Processor, corpus: Corpus) -> None:
    """The reward of what both answers of DropoutNTP begin with is the same, whatever the policy has learned since."""
    model = method(processor).eval().requires_grad_(False)
    for parameter in model.language_model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    image = Reader(corpus, processor).read_all(corpus.rows("train")[:1])[1][0]["image"]
    said = ["a red square and a disk", "a red square or two"]
    batch = pad_sequences([processor.conversation.sequence(image, [Turn(text, DESCRIBE)]) for text in said])
    policy, rows, _ = model.token_losses({"sequences": batch})
    reward = model.reference.token_losses({"sequences": batch}).nats - policy
    one, other = (batch.ids[row][batch.predicted[row]] for row in (0, 1))
    shared = int((one[:3] == other[:3]).cumprod(0).sum())
    assert shared >= 2
    torch.testing.assert_close(reward[rows == 0][:shared], reward[rows == 1][:shared], atol=1e-4, rtol=1e-4)
    assert reward[rows == 0][:shared].abs().sum() > 0.01


def test_the_reference_stays_or_moves_every_few_steps(processor: Processor) -> None:
    for alpha in (0.0, 0.6):
        model = method(processor, ref_model_mixup_alpha=alpha, ref_model_sync_steps=2)
        before = model.reference.language_model.embedding.weight.clone()
        with torch.no_grad():
            model.language_model.embedding.weight.add_(1)
        for step in range(3):
            model.after_step(step / 3)
        moved = model.reference.language_model.embedding.weight - before
        torch.testing.assert_close(moved, torch.full_like(moved, alpha))


def test_the_reference_has_no_lora_and_moves_by_merged_weights(processor: Processor, corpus: Corpus) -> None:
    """It got low-rank updates of its own, which required gradients and were averaged factor by factor."""
    model, weight = method(processor, ref_model_mixup_alpha=0.6, ref_model_sync_steps=1), "attention.qkv"
    before = model.reference.log_likelihood(batch_of(processor, corpus))
    add_lora(model, rank=2)
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.reference.parameters())
    policy, reference = (one.language_model.decoder.blocks[0].get_submodule(weight) for one in (model, model.reference))
    torch.nn.init.normal_(policy.lora_b)
    sum(model.losses(batch_of(processor, corpus)).values()).backward()
    assert policy.lora_a.grad.any()
    torch.testing.assert_close(model.reference.log_likelihood(batch_of(processor, corpus)), before)
    expected = 0.6 * (policy.base.weight + policy.lora_b @ policy.lora_a) + 0.4 * reference.weight
    model.after_step(0.0)
    torch.testing.assert_close(reference.weight, expected)


def test_a_language_model_beside_the_run_is_refused(processor: Processor) -> None:
    """--lm was replaced by the language model of the run without a word."""
    start = mono_internvl.Recipe.tiny()
    of_hub = PretrainedDecoderConfig(source="somewhere")
    with pytest.raises(UserError, match="leave --lm out"):
        dataclasses.replace(TINY, language_model=of_hub).starting_from(start)
    again = dataclasses.replace(start, language_model=of_hub)
    resumed = TINY.starting_from(again).starting_from(again)
    assert resumed.language_model == of_hub, "the run's own stays"


def test_a_run_is_needed_whose_architecture_is_taken(corpus: Corpus, tmp_path: Path) -> None:
    """With the experts that the run lacks, they would be random in the policy, and in the reference."""
    start = dataclasses.replace(mono_internvl.Recipe.tiny(), visual_experts=False, patch_embed_dim=24)
    first = pm.train(start, corpus, Budget(steps=5), out=tmp_path / "first")
    run = pm.train(TINY, corpus, Budget(steps=2), init=tmp_path / "first")
    assert (run.recipe.visual_experts, run.recipe.patch_embed_dim) == (False, 24)
    reference = run.model.reference.state_dict()
    assert all(torch.equal(reference[name], weight) for name, weight in first.model.state_dict().items())
    assert run.record["not_initialized"] == []
    with pytest.raises(UserError, match="by --init RUN"):
        pm.train(TINY, corpus, Budget(steps=1))
    with pytest.raises(UserError, match="MPO cannot start from a whole pretrained model"):
        pm.train(TINY, corpus, Budget(steps=1), init="hf:nothing")
    with pytest.raises(UserError, match="a run of another recipe"):
        TINY.starting_from(clip.Recipe())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dpo_weight": 0.0, "bco_weight": 0.0, "sft_weight": 0.0}, "are all 0"),
        ({"loss_type": "robust_dpo", "label_smoothing": 0.5}, "is below 0.5"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "has no effect on ipo"),
    ],
)
def test_losses_that_teach_nothing_are_refused(changes: dict, sentence: str) -> None:
    """No loss was an empty sum; half of the pairs flipped, an infinite one."""
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(TINY, **changes)


def test_the_paper_preset_has_the_published_values() -> None:
    recipe = mpo.Recipe.paper()
    assert (recipe.dpo_weight, recipe.bco_weight, recipe.sft_weight, recipe.beta) == (0.8, 0.2, 1.0, 0.1)
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.warmup_ratio) == (5e-6, 0.05, 0.05)
    assert (recipe.batch_size, recipe.max_tiles, recipe.language_model.context_length) == (256, 6, 6144)
