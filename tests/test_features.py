"""Frozen towers are computed once: look-ups equal computing, across epochs, processes and interruptions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from polymodal.corpora import Corpus
from polymodal.encoders.audio import AudioEncoder, AudioEncoderConfig
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.evaluation import evaluate
from polymodal.modalities.image_augmentation import NONE
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.recipes.dual_encoders import clip, improved_clip, sparc
from polymodal.training import RuntimeConfig, train
from polymodal.training.feature_cache import FeatureCache, cached_encoders, input_digests, weights_key, with_features
from polymodal.types import Budget


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emoji: Corpus) -> Path:
    """`emoji` is opened before, so that its files stay where they are."""
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def frozen(encoder: Encoder) -> torch.nn.Module:
    return torch.nn.ModuleDict({"encoder": encoder.requires_grad_(False).eval()})


def encoders() -> dict[str, tuple[Encoder, object]]:
    torch.manual_seed(0)
    text = Tokens(torch.randint(0, 300, (5, 7)), torch.tensor([7, 3, 4, 3, 1]))
    sound = Padded(torch.randn(3, 40, 80), torch.tensor([40, 17, 30]))
    return {
        "image": (ImageEncoder(ImageEncoderConfig()), torch.randn(4, 3, 32, 32)),
        "text": (TextEncoder(TextEncoderConfig(depth=2), 300), text),
        "audio": (AudioEncoder(AudioEncoderConfig()), sound),
    }


@pytest.mark.parametrize("kind", ["image", "text", "audio"])
def test_looked_up_vectors_equal_computed_ones(kind: str, own_cache: Path) -> None:
    encoder, value = encoders()[kind]
    expected = encoder.eval()(value)
    for computed in (len(input_digests(value)), 0):  # the second time everything is on disk
        cached = cached_encoders(frozen(encoder), ["encoder"])["encoder"]
        torch.testing.assert_close(encoder.pooled(value), expected[-1])
        found = encoder(value)
        torch.testing.assert_close(found[-1], expected[-1])
        tokens, wanted = found[0], expected[0]
        if isinstance(wanted, Padded):
            tokens, wanted = tokens.values, wanted.values
        torch.testing.assert_close(tokens, wanted)
        assert cached.report()["computed"] == 2 * computed  # the pooled vector alone, and all tokens
        cached.release()
        assert "pooled" not in vars(encoder)
        assert "forward" not in vars(encoder)


def test_padding_does_not_change_a_digest_but_content_does() -> None:
    short, long = Tokens(torch.tensor([[1, 5, 2]]), torch.tensor([3])), torch.tensor([[1, 5, 2, 0, 9]])
    assert input_digests(short) == input_digests(Tokens(long, torch.tensor([3])))
    assert input_digests(short) != input_digests(Tokens(long, torch.tensor([4])))


def test_other_weights_and_another_pooling_have_other_features() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextEncoderConfig(), 300)
    before = weights_key(encoder)
    other = TextEncoder(TextEncoderConfig(pool_type="eos"), 300)
    other.load_state_dict(encoder.state_dict())
    assert weights_key(other) != before
    with torch.no_grad():
        encoder.embedding.weight[7, 3] += 1e-6
    assert weights_key(encoder) != before


def test_a_store_survives_a_write_that_was_cut_off(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path)
    vectors = torch.randn(3, 2, 5)
    digests = [bytes([n]) * 15 + b"\0" for n in range(3)]  # a zero at the end is part of a digest
    store.add(digests, list(vectors))
    second = FeatureCache(tmp_path)  # of another process
    second.add([b"x" * 16], [torch.ones(1, 5)])
    (keys,) = [path for path in tmp_path.glob("*.keys") if path.stat().st_size > 40]
    keys.write_bytes(keys.read_bytes()[:-5])  # the last key was not written whole
    again = FeatureCache(tmp_path)
    assert len(again) == 3
    assert digests[2] not in again
    torch.testing.assert_close(torch.from_numpy(again.get([digests[1]])[0].copy()), vectors[1])
    rows = keys.with_suffix(".rows")
    rows.write_bytes(rows.read_bytes()[: 2 * 5 * 4])  # the first entry's features are there, the second's are not
    assert [digest in FeatureCache(tmp_path) for digest in digests] == [True, False, False]


def test_only_frozen_encoders_with_unchanged_inputs_are_cached() -> None:
    assert clip.Recipe().cacheable_encoders() == ("text_encoder",)
    assert clip.Recipe(augmentation=NONE).cacheable_encoders() == ("text_encoder", "image_encoder")
    assert improved_clip.Recipe().cacheable_encoders() == ()


def test_evaluation_looks_up_what_training_froze_as_a_whole(small_emoji: Corpus) -> None:
    model = clip.CLIP(clip.Recipe(), 300)
    with with_features(model, ("text", "image_encoder.positions")):
        assert "forward" in vars(model.text_encoder)
        assert "forward" not in vars(model.image_encoder)
    assert "forward" not in vars(model.text_encoder)
    run = train(clip.Recipe(freeze=("text",), batch_size=32), small_emoji, Budget(steps=4))
    plain = dataclasses.replace(run, record=run.record | {"runtime": {"cache_features": False}})
    for cold, warm, without in zip(*(evaluate(one, small_emoji) for one in (run, run, plain)), strict=True):
        np.testing.assert_allclose(cold.clusters, without.clusters, atol=1e-6)
        np.testing.assert_array_equal(warm.clusters, cold.clusters)


@pytest.mark.parametrize("kind", [clip, sparc])
def test_training_on_features_equals_training_through_the_frozen_tower(kind: object, small_emoji: Corpus) -> None:
    few = small_emoji.with_splits({name: rows[:96] for name, rows in small_emoji.splits.items()})
    recipe = kind.Recipe(
        freeze=("text", "image"), augmentation=NONE, text=TextEncoderConfig(depth=1, dropout=0.3), batch_size=32
    )
    runs = [
        train(recipe, few, Budget(steps=14), runtime=RuntimeConfig(cache_features=cached))
        for cached in (False, True, True)
    ]
    plain, cold, warm = (run.model.state_dict() for run in runs)
    for name, tensor in plain.items():
        torch.testing.assert_close(cold[name], tensor, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(warm[name], tensor, atol=1e-4, rtol=1e-3)
    assert "features" not in runs[0].record
    first, second = (run.record["features"]["image_encoder"] for run in runs[1:])
    assert first["looked_up"] > 2 * first["computed"] > 0  # several epochs
    assert second["computed"] == 0
    assert second["bytes"] == first["bytes"] > 0


def test_a_stage_that_trains_the_tower_again_computes_it_again(small_emoji: Corpus) -> None:
    from polymodal.types import Stage

    @dataclasses.dataclass(frozen=True)
    class Staged(clip.Recipe):
        def stages(self) -> tuple[Stage, ...]:
            return (Stage("align", trainable=("*_projection.*",)), Stage("tune"))

    run = train(Staged(augmentation=NONE, batch_size=32), small_emoji, Budget(steps=8))
    assert set(run.record["features"]) == {"text_encoder", "image_encoder"}
    assert "forward" not in vars(run.model.text_encoder)
    fresh = clip.CLIP(Staged(), run.processor.tokenizer.vocab_size)
    assert not torch.equal(run.model.text_encoder.embedding.weight, fresh.text_encoder.embedding.weight)
