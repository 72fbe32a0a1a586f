"""VATT with gradient harmonization: its losses, missing and exchanged modalities, DropToken and the paper's preset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.pools import rotated
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.modalities.padding import Padded
from polymodal.models.vatt import TripletBatch, drop_tokens
from polymodal.recipes.optimization.gradient_harmonization import VATT, Recipe
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

QUIET = RuntimeConfig(logger="none")
TINY = dataclasses.replace(Recipe.tiny(), batch_size=12, optimizer=OptimizerConfig(learning_rate=3e-3))


def method_and_batch(
    recipe: Recipe, corpus: Corpus, without: dict[str, int] | None = None
) -> tuple[VATT, TripletBatch]:
    """without: the examples that lack a modality."""
    torch.manual_seed(0)
    processor = fit_processor(recipe, corpus)
    examples = [processor.load_example(corpus, row) for row in range(12)]
    for modality, place in (without or {}).items():
        del examples[place][modality]
    return recipe.build(processor), recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 12))


def test_a_triplet_without_a_modality_has_the_other_loss_only(corpus: Corpus) -> None:
    """Its feature has no gradient of the missing loss, neither as a row nor as a negative of other rows."""
    method, batch = method_and_batch(TINY, corpus, {"sound": 3, "text": 5})
    features = method.encode(batch)
    losses = method.contrastive_losses(features)
    for loss, missing, other in (("video_audio", 3, 5), ("video_text", 5, 3)):
        (gradient,) = torch.autograd.grad(losses[loss], features["video"], retain_graph=True)
        assert not gradient[missing].any()
        assert gradient[other].any()
    complete = {name: value[torch.arange(12) != 3] for name, value in features.items()}
    torch.testing.assert_close(method.contrastive_losses(complete)["video_audio"], losses["video_audio"])


def test_padding_changes_no_embedding_of_audio(corpus: Corpus) -> None:
    method, batch = method_and_batch(TINY, corpus)
    longer = Padded(F.pad(batch["sound"].values, (0, 0, 0, 13), value=9.0), batch["sound"].lengths)
    torch.testing.assert_close(method.encode_audio(batch["sound"]), method.encode_audio(longer), atol=1e-5, rtol=0)


def test_text_is_compared_in_a_space_behind_that_of_audio(corpus: Corpus) -> None:
    """FAC head of the released code, by hand; and `embed`, which has both spaces side by side."""
    method, batch = method_and_batch(dataclasses.replace(TINY, num_texts=2), corpus)
    features = {name: value.detach() for name, value in method.encode(batch).items()}
    assert features["text"].shape == (12, 2, 16)
    linear = method.va_to_vt[1].requires_grad_(False)
    video = F.normalize(F.relu(features["video"]) @ linear.weight.T + linear.bias, dim=1)
    text = F.normalize(features["text"], dim=2)
    loss = 0.0
    for row in range(12):
        own = sum(float((video[row] @ text[row, n] / 0.07).exp()) for n in range(2))
        every = [
            float((video[a] @ text[b, n] / 0.07).exp())
            for a, b in [*((row, b) for b in range(12)), *((a, row) for a in range(12))]
            for n in range(2)
        ]
        loss -= float(torch.tensor(own / sum(every)).log()) / 12
    assert float(method.contrastive_losses(features)["video_text"]) == pytest.approx(loss, rel=1e-5)
    vectors = method.embed({"video": batch["video"], "sound": batch["sound"]})
    audio = F.normalize(features["audio"], dim=1) @ F.normalize(features["video"], dim=1).T
    torch.testing.assert_close(vectors["sound"] @ vectors["video"].T * 2**0.5, audio)


def test_exchanged_triplets_are_marked(corpus: Corpus) -> None:
    plain, mixed = (method_and_batch(dataclasses.replace(TINY, mismatch_rate=r), corpus)[1] for r in (0.0, 0.9))
    texts = [not torch.equal(a, b) for a, b in zip(plain["text"].ids, mixed["text"].ids, strict=True)]
    sounds = (plain["sound"].values != mixed["sound"].values).flatten(1).any(1).tolist()
    assert "misaligned" not in plain
    assert mixed["misaligned"].sum() > 3
    for changed, name in ((texts, "texts"), (sounds, "sounds")):
        assert not torch.tensor(changed)[~mixed["misaligned"]].any(), name
    assert rotated(torch.tensor([True, False, True, True, False])) == [2, 1, 3, 0, 4], "each once, none twice"
    assert rotated(torch.tensor([False, True])) == [0, 1], "one has no other"
    assert any(texts)
    assert any(sounds)
    assert not any(text and sound for text, sound in zip(texts, sounds, strict=True))


def test_drop_token_keeps_some_tokens_in_their_order() -> None:
    tokens = Padded(torch.arange(20.0).view(2, 10, 1), torch.tensor([10, 5]))
    kept = drop_tokens(tokens, 0.5)
    assert kept.lengths.tolist() == [5, 2]
    for row, length in zip(kept.values[..., 0], (5, 2), strict=True):
        assert (row[:length].diff() > 0).all()
    assert kept.values[1, :2].max() < 15, "no padding"
    assert len({tuple(drop_tokens(tokens, 0.5).values[0, :, 0].tolist()) for _ in range(20)}) > 10


def test_it_learns_by_groups_and_by_features(corpus: Corpus, tmp_path: Path) -> None:
    for granularity in ("group", "feature"):
        recipe = dataclasses.replace(
            TINY, gradient_harmonization="both", gradient_granularity=granularity, mismatch_rate=0.3
        )
        run = train(recipe, corpus, Budget(steps=20), out=tmp_path / granularity, runtime=QUIET)
        entries = [entry for entry in run.history if "losses" in entry]
        assert sum(entries[-1]["losses"].values()) < sum(entries[0]["losses"].values())
        assert 0 < entries[-1]["gradient_harmonization"]["skip_rate"] < 1
        assert 0 < entries[-1]["gradient_harmonization"]["misalignment_auc"] < 1
    scores = {score.name: score for score in evaluate(run, corpus)}
    assert scores["test/sound_to_video/R@5"].value > scores["test/sound_to_video/R@5"].chance
    with pytest.raises(UserError, match="divide"):
        train(dataclasses.replace(recipe, gradient_granularity="group", gradient_group_size=5), corpus, Budget(steps=1))


def test_the_preset_of_the_paper_is_vatt_ma_medium(corpus: Corpus) -> None:
    recipe = Recipe.paper()
    processor = fit_processor(dataclasses.replace(recipe, video=TINY.video, text=TINY.text), corpus)
    with torch.device("meta"):
        model = recipe.build(processor)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    heads = ("video_to_va", "audio_to_va", "va_to_vt", "text_to_vt", "word_")
    assert sum(size for name, size in sizes.items() if not name.startswith(heads)) == pytest.approx(155e6, rel=0.01)
    blocks = model.backbone.blocks
    assert [block.dropout.p for block in blocks] == [0.1] * 12, "dropout_rate of UniTBase in the released configs"
