"""MoMa: routing by modality, causal predictions, equal operations, stages, generation in both directions."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from polymodal.corpora import Corpus
from polymodal.data.conversation import IMAGE
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import TEXT
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.pretrained_language_model import PretrainedDecoderConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.layers.expert_choice import batch_routers, use_auxiliary_routers
from polymodal.recipes.any_to_any import moma
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages

SMALL = LanguageModelConfig(
    vocab_size=400, context_length=120, width=32, depth=2, num_heads=4, mlp_dim=48, tie_word_embeddings=False
)
CODES = ImageTokenizerConfig(codebook_size=32, codebook_dim=4, width=16)
TINY = moma.Recipe(language_model=SMALL, tokenizer=CODES, tile_size=32, batch_size=8)
DENSE = {"modality_aware": False, "num_text_experts": 1, "num_image_experts": 0}


@pytest.fixture(scope="module")
def processor(scenes: Corpus) -> Processor:
    return fit_processor(TINY, scenes.with_splits({name: rows[:64] for name, rows in scenes.splits.items()}))


@pytest.fixture(scope="module")
def batch(scenes: Corpus, processor: Processor) -> dict:
    _, examples = Reader(scenes, processor).read_all(scenes.rows("train")[:8])
    return TINY.training_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def method(processor: Processor, **changes: object) -> moma.MoMa:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(processor).eval()


def test_an_image_sends_no_gradient_to_experts_of_text(processor: Processor, batch: dict) -> None:
    model = method(processor).train()
    experts, seen = model.language_model.decoder.experts()[0], {}
    for name in (TEXT, IMAGE):
        experts.get_submodule(name).register_forward_hook(lambda _, x, __, n=name: seen.update({n: len(x[0])}))
    losses = model.losses(batch)
    assert 5.5 < losses[TEXT] + losses[IMAGE] < 6.7, "about the logarithm of 432 entries"
    assert seen == {TEXT: int((batch["sequences"].document > 0).sum()) - 8 * 16, IMAGE: 8 * 16}, "padding is nobody's"
    sequences = processor(document=[[np.full((32, 32, 3), 120, np.uint8)]])["sequences"]
    ids = model.token_ids(sequences)
    experts(model.language_model.embedding(ids), model._routes(ids, sequences.document))[0, 3:10].sum().backward()
    touched = {name for name, p in experts.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert all(name.startswith("image.") for name in touched)


@pytest.mark.parametrize("capacity", [0.0, 0.5])
def test_a_prediction_does_not_depend_on_what_follows(capacity: float, processor: Processor) -> None:
    model, image = method(processor, mod_capacity=capacity), np.full((32, 32, 3), 120, np.uint8)
    sequences = processor(document=[["a cat and a bus", image], ["a cat and a tree", image]])["sequences"]
    same = int((sequences.ids[0] == sequences.ids[1]).long().cumprod(0).sum())
    assert same >= 4
    use_auxiliary_routers(model)
    states = model._states(model.token_ids(sequences), sequences.position, sequences.document)
    torch.testing.assert_close(states[0, :same], states[1, :same], atol=1e-5, rtol=1e-5)


def test_arms_have_equal_operations(processor: Processor, batch: dict) -> None:
    """By torch's count of a forward pass; routers are what is more. MoD passes a quarter through every other block."""
    flops = {}
    wide = dataclasses.replace(SMALL, width=64, mlp_dim=192, depth=4)
    arms = {
        "dense": DENSE,
        "1t1i": {"num_text_experts": 1, "num_image_experts": 1},
        "moe_4x": {"modality_aware": False},
    }
    arms |= {"moma": {}, "mod": {"mod_capacity": 0.25, "language_model": dataclasses.replace(wide, depth=7)}}
    for name, changes in arms.items():
        model = method(processor, **{"language_model": wide, **changes}).requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            assert all(value.isfinite() for value in model.losses(batch).values())
        flops[name] = counter.get_total_flops() / 1e6
    rows = flops.pop("mod")
    assert all(count == pytest.approx(flops["dense"], rel=0.02) for count in flops.values()), flops
    assert rows == pytest.approx(flops["dense"], rel=0.25), "rows are as long as the longest selection"


def test_stages_train_what_they_are_for(processor: Processor) -> None:
    model = method(processor)
    names = [name for name, _ in model.named_parameters()]
    main = [name for name in names if any(fnmatchcase(name, pattern) for pattern in moma.LEARNED)]
    others = [name for name in names if name not in main]
    assert all(name.startswith("image_tokenizer.") or ".auxiliary." in name for name in others)
    assert not any("auxiliary" in name or "tokenizer" in name for name in main)
    assert [stage.name for stage in active_stages(TINY)] == ["tokenizer", "experts", "routers"]
    assert [stage.name for stage in active_stages(dataclasses.replace(TINY, **DENSE))] == ["tokenizer", "experts"]


def test_auxiliary_routers_of_images_meet_texts_alone(processor: Processor) -> None:
    """The only routers are those of images: there was no loss at all, and in one process of several no gradient."""
    model = method(processor, num_text_experts=1).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".auxiliary." in name)
    losses = model.losses(processor(document=[["a cat and a bus"]]))
    assert losses["routers"].item() == 0
    losses["routers"].backward()
    auxiliary = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(auxiliary) == 2 * SMALL.depth
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in auxiliary)


def test_a_likelihood_that_sees_later_tokens_says_so(processor: Processor, batch: dict) -> None:
    """Before auxiliary routers had learned, likelihoods by the whole batch had the name of causal ones."""
    by_batch = {f"{name}_by_whole_batch" for name in ("text", "image", "all")}
    model = method(processor)
    assert set(model.token_nll(batch)) == by_batch
    use_auxiliary_routers(model)
    found = model.token_nll(batch)
    assert set(found) == {"text", "image", "all"} | by_batch
    assert not torch.allclose(found["all"][0], found["all_by_whole_batch"][0])
    assert all(router.use_predictor for router in batch_routers(model)), "as before"
    dense = method(processor, **DENSE).token_nll(batch)
    assert torch.equal(dense["all"][0], dense["all_by_whole_batch"][0])
    with pytest.raises(UserError, match="the third of --stage-fractions be above 0"):
        dataclasses.replace(TINY, stage_fractions=(0.2, 0.8, 0.0))
    with pytest.raises(UserError, match="the third of --stage-fractions be above 0"):
        dataclasses.replace(TINY, **DENSE, mod_capacity=0.25, stage_fractions=(0.2, 0.8, 0.0))
    dataclasses.replace(TINY, **DENSE, stage_fractions=(0.2, 0.8, 0.0))


def test_images_follow_words_and_words_follow_images(processor: Processor) -> None:
    model, prompts = method(processor), processor(text=["a cat", "a small bus"])
    made = [model.generate_images(prompts, 8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].shape == (2, 3, 32, 32)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    decoding = Decoding(max_new_tokens=40, temperature=2.0)
    (text,) = model.generate_text(
        processor(image=[np.full((32, 32, 3), 120, np.uint8)]), decoding, torch.Generator().manual_seed(0)
    )
    assert max(text) < processor.tokenizer.vocab_size, "codes are no words"


def test_what_cannot_be_trained_is_refused(processor: Processor) -> None:
    with pytest.raises(UserError, match="Leave --lm out"):
        dataclasses.replace(TINY, language_model=PretrainedDecoderConfig(source="x"))
    with pytest.raises(UserError, match="--upcycling-fraction is below 1"):
        dataclasses.replace(TINY, upcycling_fraction=1.0)
    with pytest.raises(UserError, match="An image of 256 tokens leaves no room in a context of 120"):
        method(processor, tile_size=128)


def test_the_published_size(processor: Processor) -> None:
    """Table 1: 1.4B dense and 7.1B with four experts of each modality."""
    recipe, counts = moma.Recipe.paper(), {}
    for name, one in (("moma", recipe), ("dense", dataclasses.replace(recipe, **DENSE))):
        with torch.device("meta"):
            model = moma.MoMa(one, one.language_model.vocab_size, method(processor).formats[IMAGE], 0)
        weights = model.language_model.named_parameters()
        counts[name] = sum(parameter.numel() for key, parameter in weights if "auxiliary" not in key)
    assert counts["dense"] == pytest.approx(1.4e9, rel=0.06)
    assert counts["moma"] == pytest.approx(7.1e9, rel=0.02)
