"""Gradient harmonization on VATT: shares of a batch's gradient, swapped triplets, and two spaces side by side."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.corpora.clips import MOTIONS, Actor, film
from polymodal.corpora.corpus import About
from polymodal.corpora.scenes import sprites_of
from polymodal.data.processor import fit_processor
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.modalities import Audio, Text, Video
from polymodal.modalities.audio import encoded
from polymodal.modalities.padding import Padded
from polymodal.modalities.video import encode
from polymodal.recipes.optimization import gradient_harmonization as harmonization
from polymodal.rng import ExampleRNG
from polymodal.training import load_run, train
from polymodal.training.grad_cache import GradCacheMethod, backward
from polymodal.training.gradient_harmonization import GradientHarmonizer
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.parallel import World
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
ALONE = World(0, 1, torch.device("cpu"))
TINY = harmonization.Recipe(
    batch_size=16,
    optimizer=OptimizerConfig(learning_rate=3e-3),
    video=VideoEncoderConfig(frames=2, image_size=32, patch_size=16, width=32, depth=1, num_heads=2),
    text=TextEncoderConfig(vocab_size=400, context_length=24),
    num_mel_bins=20,
    embed_dim=16,
    text_dim=16,
)


@pytest.fixture(scope="module")
def clips() -> Corpus:
    """A thing that moves and hums a tone of its own, and what is said of it."""
    sprites, rows = sprites_of("google")[:6], []
    for number in range(96):
        rng = np.random.default_rng(number)
        place, motion = int(rng.integers(len(sprites))), str(rng.choice(list(MOTIONS)))
        frames, _ = film([Actor("a", sprites[place].name, sprites[place].image, None)], [motion], rng)
        tone = 0.5 * np.sin(2 * np.pi * 200 * (1 + place) * np.arange(16_000) / 16_000)
        rows.append(
            {
                "video": encode(frames, 8),
                "sound": encoded(tone.astype(np.float32), 16_000),
                "captions": [{"text": f"a {sprites[place].name} {motion}", "language": "en"}],
            }
        )
    return Corpus(
        about=About("humming", "clips", "none", "here", ("video", "audio", "text")),
        table=pa.Table.from_pylist(rows),
        columns={"video": Video(8), "sound": Audio(), "captions": Text()},
        splits={"train": np.arange(64), "validation": np.arange(64, 80), "test": np.arange(80, 96)},
    )


def batches_of(recipe: harmonization.Recipe, corpus: Corpus, groups: int) -> tuple[harmonization.VATT, list[dict]]:
    torch.manual_seed(0)
    processor = fit_processor(recipe, corpus)
    examples = [processor.load_example(corpus, row) for row in range(16)]
    size = len(examples) // groups
    return recipe.build(processor), [
        recipe.training_batch(examples[first : first + size], processor, ExampleRNG.of(0, first, size))
        for first in range(0, len(examples), size)
    ]


def gradients(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("groups", [1, 4])
def test_without_conflict_the_shares_are_the_gradient_of_the_whole_batch(clips: Corpus, groups: int) -> None:
    """The curriculum at its first threshold leaves nothing out where nothing is below it; all is then as plain."""
    method, batches = batches_of(TINY, clips, groups)
    plain_losses = backward(method, method.losses, batches, {}, lambda _: nullcontext())
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    harmony = GradientHarmonizer("curriculum")
    losses = harmony.backward(method, batches, {}, lambda _: nullcontext(), -1.0, ALONE)
    assert harmony.report()["gradient_harmonization"]["skip_rate"] == 0
    assert {name: float(loss) for name, loss in losses.items()} == pytest.approx(
        {name: float(loss) for name, loss in plain_losses.items()}, rel=1e-5
    )
    for name, value in gradients(method).items():
        assert torch.allclose(value, plain[name], atol=2e-6), name
    assert set(gradients(method)) == set(plain)


class Opposed(GradCacheMethod, nn.Module):
    """Two losses of one shared vector, which pull apart for the second half of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.scale = nn.Parameter(torch.tensor([1.0, 1.0])), nn.Parameter(torch.tensor(1.0))

    def encode(self, batch: dict) -> dict[str, torch.Tensor]:
        return {"first": batch["first"] * self.shared, "second": batch["second"] * self.shared}

    def contrastive_losses(self, vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"one": self.scale * vectors["first"].sum(1).mean(), "other": vectors["second"].sum(1).mean()}


def test_groups_that_conflict_are_left_out_or_projected_by_hand() -> None:
    agreeing = {"first": torch.tensor([[1.0, 0.0]]), "second": torch.tensor([[1.0, 1.0]])}
    against = {"first": torch.tensor([[1.0, 0.0]]), "second": torch.tensor([[-1.0, 1.0]])}
    method = Opposed()
    GradientHarmonizer("curriculum").backward(method, [agreeing, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    assert torch.allclose(method.shared.grad, torch.tensor([2.0, 1.0])), "the agreeing one alone"
    assert torch.allclose(method.scale.grad, torch.tensor(1.0)), "what only the comparison has, once"
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("realign").backward(method, [agreeing, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    # (1, 0) and (-1, 1) become (1/2, 1/2) and (0, 1); the mean over both groups.
    assert torch.allclose(method.shared.grad, torch.tensor([(2.0 + 0.5) / 2, (1.0 + 1.5) / 2]))


def test_a_parameter_of_both_halves_gets_the_gradients_of_both() -> None:
    class Both(Opposed):
        def contrastive_losses(self, vectors: dict) -> dict:
            return {
                name: loss + self.shared.square().sum() for name, loss in super().contrastive_losses(vectors).items()
            }

    groups = [{name: torch.rand(2, 2) for name in ("first", "second")} for _ in range(3)]
    method = Both()
    whole = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    sum(method.losses(whole).values()).backward()
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("curriculum").backward(method, groups, {}, lambda _: nullcontext(), -1.0, ALONE)
    assert torch.allclose(method.shared.grad, plain["shared"])
    assert torch.allclose(method.scale.grad, plain["scale"])


def test_a_frozen_encoder_takes_no_part() -> None:
    class HalfFrozen(Opposed):
        def encode(self, batch: dict) -> dict[str, torch.Tensor]:
            return super().encode(batch) | {"first": batch["first"]}

    groups = [{name: torch.rand(2, 2) for name in ("first", "second")} for _ in range(2)]
    method = HalfFrozen()
    whole = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    sum(method.losses(whole).values()).backward()
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("curriculum").backward(method, groups, {}, lambda _: nullcontext(), -1.0, ALONE)
    assert torch.allclose(method.shared.grad, plain["shared"])
    assert torch.allclose(method.scale.grad, plain["scale"])


def test_swapped_triplets_get_the_text_or_the_sound_of_another(clips: Corpus) -> None:
    recipe = dataclasses.replace(TINY, mismatch_rate=0.5)
    processor = fit_processor(recipe, clips)
    examples = [processor.load_example(clips, row) for row in range(64)]
    plain, mixed = (one.training_batch(examples, processor, ExampleRNG.of(0, 0, 64)) for one in (TINY, recipe))
    assert torch.equal(plain["video"], mixed["video"])
    texts = [a != b for a, b in zip(*(processor.tokenizer.decode(b["text"]) for b in (plain, mixed)), strict=True)]
    sounds = (plain["sound"].values != mixed["sound"].values).flatten(1).any(1).tolist()
    assert not any(text and sound for text, sound in zip(texts, sounds, strict=True))
    assert 6 <= sum(texts) <= 24, "a quarter, but for those whose neighbour says the same"
    assert 6 <= sum(sounds) <= 24


def test_padding_of_sounds_and_texts_changes_nothing(clips: Corpus) -> None:
    method, (batch,) = batches_of(TINY, clips, 1)
    longer = Padded(nn.functional.pad(batch["sound"].values, (0, 0, 0, 13), value=9.0), batch["sound"].lengths)
    assert torch.allclose(method.encode_audio(batch["sound"]), method.encode_audio(longer), atol=1e-5)


def test_one_vector_a_modality_has_both_spaces(clips: Corpus) -> None:
    method, (batch,) = batches_of(TINY, clips, 1)
    vectors, apart = method.embed(batch), method.encode(batch)
    for name in ("video", "sound", "text"):
        assert torch.allclose(vectors[name].norm(dim=1), torch.ones(16), atol=1e-5)
    assert torch.allclose(
        vectors["text"] @ vectors["video"].T * 2**0.5, apart["text"] @ apart["video_for_text"].T, atol=1e-5
    )
    assert torch.allclose(vectors["sound"] @ vectors["video"].T * 2**0.5, apart["sound"] @ apart["video"].T, atol=1e-5)


def test_it_learns_in_groups_and_is_asked_for_sounds(clips: Corpus, tmp_path) -> None:
    recipe = dataclasses.replace(TINY, gradient_harmonization="both")
    run = train(recipe, clips, Budget(steps=100), out=tmp_path / "run", runtime=QUIET)
    entries = [entry for entry in run.history if "losses" in entry]
    for loss in ("video_sound", "video_text"):
        assert entries[-1]["losses"][loss] < entries[0]["losses"][loss]
    assert 0 <= entries[-1]["gradient_harmonization"]["skip_rate"] <= 1
    scores = {score.name: score for score in evaluate(run, clips)}
    assert scores["test/sound_to_video/R@1"].value > scores["test/sound_to_video/R@1"].chance
    assert "test/text_to_video/R@1" in scores
    again = load_run(tmp_path / "run")
    assert torch.equal(again.embed(text=["a thing"])["text"], run.embed(text=["a thing"])["text"])


def test_groups_divide_the_batch(clips: Corpus) -> None:
    with pytest.raises(UserError, match="divide"):
        train(
            dataclasses.replace(TINY, gradient_harmonization="both", gradient_group_size=5),
            clips,
            Budget(steps=1),
            runtime=QUIET,
        )


def test_the_paper_preset_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = harmonization.VATT(harmonization.Recipe.paper(), 65_536)
    assert 300e6 < sum(parameter.numel() for parameter in model.parameters()) < 420e6
    assert "gradient_harmonization" in pm.recipes.entries()
