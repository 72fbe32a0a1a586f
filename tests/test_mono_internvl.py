"""Mono-InternVL: figures of the released code, experts that leave the language as it was, stages, batches."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFont

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.data.conversation import IMAGE, Turn
from polymodal.data.instructions import can_draw, exchanged, ocr_turn
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.data.sequence import TEXT, Span, pad_sequences
from polymodal.encoders.image_embedding import ImageEmbedding
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.modalities.image import patchify
from polymodal.modalities.text import Caption
from polymodal.models.vision_language_model import VisionLanguageModel
from polymodal.recipes.language_models import mono_internvl
from polymodal.recipes.preference import mpo
from polymodal.rng import ExampleRNG
from polymodal.training.stages import active_stages
from polymodal.types import Budget

GOLDEN = Path(__file__).parent / "golden" / "mono_internvl.npz"
SMALL = LanguageModelConfig(
    vocab_size=400, context_length=160, width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=64
)
TINY = mono_internvl.Recipe(
    language_model=SMALL, tile_size=48, patch_size=8, patch_embed_dim=16, batch_size=8, max_turns=3
)


@pytest.fixture(scope="module")
def few_scenes(scenes: Corpus) -> Corpus:
    return scenes.with_splits({name: rows[:32] for name, rows in scenes.splits.items()})


@pytest.fixture(scope="module")
def processor(few_scenes: Corpus) -> Processor:
    return fit_processor(TINY, few_scenes)


def method(processor: Processor, recipe: mono_internvl.Recipe = TINY) -> VisionLanguageModel:
    torch.manual_seed(0)
    return recipe.build(processor).eval()


def released(given: dict[str, torch.Tensor]) -> VisionLanguageModel:
    """Our model with the weights of the released one."""
    config = LanguageModelConfig(40, 64, 16, 2, 4, 2, 24, norm_eps=1e-6, tie_word_embeddings=False)
    model = VisionLanguageModel(
        {IMAGE: ImageEmbedding(4, 4, 8, 16)}, config.build(40, (TEXT, IMAGE)), 2, experts=[IMAGE]
    )
    weights = {name.removeprefix("weight/"): value for name, value in given.items() if name.startswith("weight/")}
    text, vision = "language_model.model.", "vision_model.embeddings."
    own = {
        "language_model.embedding.weight": weights[f"{text}tok_embeddings.weight"],
        "language_model.head.weight": weights["language_model.output.weight"],
        "language_model.decoder.norm_post.weight": weights[f"{text}norm.weight"],
        "image_encoder.patches.weight": weights[f"{vision}patch_embedding.weight"].flatten(1),
        "image_encoder.patches.bias": weights[f"{vision}patch_embedding.bias"],
        "image_encoder.positions": cells(weights[f"{vision}position_embedding"]),
    }
    own |= {f"image_encoder.project.{n.removeprefix('mlp1.')}": w for n, w in weights.items() if n.startswith("mlp1.")}
    for layer in range(2):
        theirs, ours = f"{text}layers.{layer}.", f"language_model.decoder.blocks.{layer}."
        qkv = weights[f"{theirs}attention.wqkv.weight"].view(2, 4, 4, 16)  # key-value heads, two queries + k + v
        qkv = [qkv[:, :2].reshape(16, 16), qkv[:, 2].reshape(8, 16), qkv[:, 3].reshape(8, 16)]
        own |= {f"{ours}attention.qkv.weight": torch.cat(qkv)}
        own |= {f"{ours}attention.out.weight": weights[f"{theirs}attention.wo.weight"]}
        for norm, name in (("norm1", "attention_norm"), ("norm2", "ffn_norm")):
            own[f"{ours}{norm}.weight"] = weights[f"{theirs}{name}.weight"]
        for expert, name in ((TEXT, "feed_forward"), (IMAGE, "feed_forward_ve")):
            w1, w2, w3 = (weights[f"{theirs}{name}.w{number}.weight"] for number in (1, 2, 3))
            own |= {f"{ours}feed_forward.{expert}.gate_up.weight": torch.cat([w1, w3])}
            own |= {f"{ours}feed_forward.{expert}.down.weight": w2}
    model.load_state_dict(own)
    return model


def cells(positions: torch.Tensor) -> torch.Tensor:
    """Row-major positions of 4 x 4 patches behind a class position, by cells of 2 x 2."""
    return patchify(positions[0, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2), 2)[0].view(4, 8, 4).mT.contiguous()


def test_logits_loss_and_gradients_are_those_of_the_released_code() -> None:
    """tests/golden/mono_internvl.txt: an image of two tiles, one of a single tile, padding, experts by modality."""
    given = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items()}
    model, pixels = released(given), patchify(given["pixel_values"], 8)
    tiles, rows = [pixels[:2].flatten(0, 1), pixels[2]], []
    for ids, mask, labels, tile in zip(
        given["input_ids"], given["attention_mask"], given["labels"], tiles, strict=True
    ):
        first, last, answer = int((ids == 5).nonzero()[0]), int((ids == 5).nonzero()[-1]), int((labels == -100).sum())
        answer -= int((mask == 0).sum())
        length = int(mask.sum())
        asked = Span(TEXT, ids[last + 1 : answer], predicted=False)
        rows.append([Span(TEXT, ids[:first], False), Span(IMAGE, tile, False), asked, Span(TEXT, ids[answer:length])])
    batch = {"sequences": pad_sequences(rows)}
    torch.testing.assert_close(
        model.image_encoder(pixels.flatten(0, 1)), given["vit_embeds"].flatten(0, 1), atol=1e-5, rtol=1e-5
    )
    logits = model.language_model.logits(model.hidden_states(batch))
    there = given["attention_mask"].bool()
    torch.testing.assert_close(logits[there], given["logits"][there], atol=1e-5, rtol=1e-5)
    loss = model.losses(batch)["lm"]
    torch.testing.assert_close(loss, given["loss"], atol=1e-5, rtol=1e-5)
    loss.backward()
    layer = model.language_model.decoder.blocks[0].feed_forward
    found = {
        "language_model.model.layers.0.feed_forward_ve.w1.weight": layer.image.gate_up.weight.grad[:24],
        "language_model.model.layers.0.feed_forward.w2.weight": layer.text.down.weight.grad,
        "vision_model.embeddings.patch_embedding.weight": model.image_encoder.patches.weight.grad.view(8, 3, 4, 4),
    }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, given[f"grad/{name}"], atol=1e-5, rtol=1e-5)


def test_an_expert_that_was_copied_changes_nothing(processor: Processor, few_scenes: Corpus) -> None:
    """At the first step, the model is the language model on the vectors of images."""
    with_experts = method(processor)
    without = method(processor, dataclasses.replace(TINY, visual_experts=False))
    weights = with_experts.state_dict()
    without.load_state_dict({name: weights[name] for name in without.state_dict()})
    with_experts.language_model.copy_experts("text")
    batch = batch_of(processor, few_scenes)
    with torch.no_grad():
        torch.testing.assert_close(with_experts.losses(batch)["lm"], without.losses(batch)["lm"])


def batch_of(processor: Processor, corpus: Corpus, recipe: mono_internvl.Recipe = TINY) -> dict:
    _, examples = Reader(corpus, processor).read_all(corpus.rows("train")[:8])
    return recipe.semantic_batch(examples, processor, ExampleRNG.of(0, 0, 8))


def test_language_stays_bit_for_bit_while_images_are_learned(few_scenes: Corpus, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, stage_fractions=(1, 0, 0, 0, 0))
    first = pm.train(recipe, few_scenes, Budget(steps=3), out=tmp_path / "first")
    visual = dataclasses.replace(TINY, stage_fractions=(0, 1, 1, 0, 0))
    second = pm.train(visual, few_scenes, Budget(steps=4), out=tmp_path / "second", init=tmp_path / "first")
    before, after = first.model.state_dict(), second.model.state_dict()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert learned
    assert all(name.startswith("image_encoder.") or ".feed_forward.image." in name for name in learned)
    texts = first.processor(answer=["a large cat and a small bus"])
    assert torch.equal(first.model.log_likelihood(texts), second.model.log_likelihood(texts))
    third = pm.train(visual, few_scenes, Budget(steps=1), init=tmp_path / "second")
    assert not third.recipe.copy_llm_mlps, "experts that a run has trained are kept"
    blind = dataclasses.replace(visual, visual_experts=False)
    pm.train(blind, few_scenes, Budget(steps=1), out=tmp_path / "blind", init=tmp_path / "first")
    with pytest.warns(UserWarning, match="blind has no weights for language_model.decoder.blocks.0.feed_forward.image"):
        fourth = pm.train(visual, few_scenes, Budget(steps=1), init=tmp_path / "blind")
    assert len(fourth.record["not_initialized"]) == 4


def test_trained_experts_stay_whichever_run_of_the_family_has_them() -> None:
    language = dataclasses.replace(TINY, stage_fractions=(1, 0, 0, 0, 0))
    after_vision = dataclasses.replace(language, copy_llm_mlps=False)  # began with a run that had trained them
    taught = mpo.Recipe.tiny()
    assert not any(TINY.starting_from(source).copy_llm_mlps for source in (TINY, after_vision, taught))
    blind = (dataclasses.replace(source, visual_experts=False) for source in (TINY, taught))
    assert all(TINY.starting_from(source).copy_llm_mlps for source in (None, language, *blind))


@pytest.mark.parametrize("fractions", [(1, 1, 1, 1, 1), (1, 0, 1, 0, 0), (0, 0, 0, 1, 1), (0, 0, 0, 0, 1)])
@pytest.mark.parametrize("staged", [True, False])
def test_experts_are_copied_in_the_first_stage_with_images(fractions: tuple[int, ...], staged: bool) -> None:
    stages = active_stages(dataclasses.replace(TINY, stage_fractions=fractions, staged=staged))
    seeing = [stage for stage in stages if stage.name != "language"]
    assert [stage.on_start for stage in seeing] == ["copy_experts", *[None] * (len(seeing) - 1)]
    assert all(stage.on_start is None for stage in stages if stage.name == "language")


def test_the_gradient_reaches_pixels_through_the_frozen_language_model(
    processor: Processor, few_scenes: Corpus
) -> None:
    model = method(processor).train()
    patterns = TINY.stages()[1].trainable
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))
    model.losses(batch_of(processor, few_scenes))["lm"].backward()
    for name, parameter in model.named_parameters():
        seeing = name.startswith("image_encoder.") or ".feed_forward.image." in name
        assert (parameter.grad is not None) == seeing, name
        if seeing:  # what images' tokens are after the last attention, nobody reads
            assert (parameter.grad.abs().sum() > 0) == (".blocks.1.feed_forward." not in name), name


def test_a_batch_without_images_runs_and_no_parameter_is_left_out(processor: Processor) -> None:
    model = method(processor).train()
    texts = processor.conversation.pack([processor.conversation.sequence(None, [Turn("a small cat")])])
    model.losses({"sequences": texts})["lm"].backward()
    experts = [p for name, p in model.named_parameters() if ".feed_forward.image." in name]
    assert experts
    assert all(p.grad is not None and (p.grad == 0).all() for p in experts)


def test_several_tiles_are_seen_at_their_places(processor: Processor) -> None:
    """Two tiles and the whole: three times the tokens, and the second tile changes its own only."""
    model = method(processor)
    column = dataclasses.replace(processor.image, max_tiles=2)
    image = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    other = image.copy()
    other[:, 48:] = 0
    with torch.no_grad():
        seen = [model.image_encoder(column.patchify_tiles(one, None)) for one in (image, other)]
    assert len(seen[0]) == 3 * processor.image.tokens_per_tile
    same = (seen[0] == seen[1]).all(1).unflatten(0, (3, -1))
    assert same[0].all()
    assert not same[1].any()


def test_a_mixture_has_the_stages_in_their_proportions(processor: Processor, few_scenes: Corpus) -> None:
    _, examples = Reader(few_scenes, processor).read_all(few_scenes.rows("train"))
    longest = TINY.semantic_batch(examples, processor, ExampleRNG.of(0, 0, 32))["sequences"]
    for fractions, equal in (((0, 0, 1, 0, 0), True), ((0, 1, 1, 0, 0), False)):
        recipe = dataclasses.replace(TINY, staged=False, stage_fractions=fractions)
        mixed = recipe.mixed_batch(examples, processor, ExampleRNG.of(0, 0, 32))["sequences"]
        assert (mixed.ids.shape == longest.ids.shape and torch.equal(mixed.ids, longest.ids)) == equal
    assert 0.3 < mixed.predicted.sum() / longest.predicted.sum() < 0.9, "half of them are short"


def test_a_mixture_trains_what_the_stages_train() -> None:
    """A single stage trained attention from the beginning, which the stages had frozen until the third."""
    staged, mixed = (active_stages(dataclasses.replace(TINY, staged=staged)) for staged in (True, False))
    same = ("name", "fraction", "trainable", "lr_scale", "on_start")
    assert [[getattr(one, name) for name in same] for one in staged] == [
        [getattr(one, name) for name in same] for one in mixed
    ]
    assert [stage.batch for stage in mixed] == ["text_batch", *["mixed_batch"] * 3, "training_batch"]


def test_an_exchanged_caption_is_the_one_before(processor: Processor, few_scenes: Corpus) -> None:
    _, examples = Reader(few_scenes, processor).read_all(few_scenes.rows("train")[:8])
    examples = [example | {"text": [Caption(f"number {n}")]} for n, example in enumerate(examples)]
    shifted = [example | {"text": examples[n - 1]["text"]} for n, example in enumerate(examples)]
    noisy = dataclasses.replace(TINY, caption_noise=1.0).concept_batch(examples, processor, ExampleRNG.of(0, 0, 8))
    clean = TINY.concept_batch(shifted, processor, ExampleRNG.of(0, 0, 8))
    assert torch.equal(noisy["sequences"].ids, clean["sequences"].ids)
    assert exchanged(["a", "b", "c"], [True, False, True]) == ["c", "b", "b"]


def test_words_that_the_font_cannot_draw_are_no_task(processor: Processor, few_scenes: Corpus) -> None:
    """It drew the same boxes for all of them, with a different answer each."""
    font = ImageFont.load_default(size=14)
    assert can_draw(font, "a red cat, 3!")
    assert not any(can_draw(font, text) for text in ("кот", "猫", "बिल्ली", "é", "قطة"))
    _, examples = Reader(few_scenes, processor).read_all(few_scenes.rows("train")[:8])
    cats = [{IMAGE: example[IMAGE], "text": [Caption("кот", "ru")]} for example in examples]
    assert ocr_turn(cats[0], np.random.default_rng(0)) is None
    batch = TINY.task_batch(cats, processor, ExampleRNG.of(0, 0, 8))["sequences"]
    assert batch.predicted.any()
