"""Pretrained weights in the place of own towers: equality with transformers, on tiny checkpoints written here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from polymodal.corpora import Corpus
from polymodal.data.processor import fit_processor
from polymodal.encoders import pretrained
from polymodal.encoders.pretrained import folder_of
from polymodal.encoders.pretrained_audio import PretrainedAudioConfig
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_language_model import PretrainedLanguageModel, read_language_model
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.layers.lora import merged_parameters
from polymodal.modalities.padding import pad
from polymodal.modalities.text import Tokens
from polymodal.recipes.dual_encoders import clip, siglip
from polymodal.serving.export.transformers import to_transformers
from polymodal.training import load_run, train
from polymodal.training.activation_checkpointing import checkpoint_activations
from polymodal.training.feature_cache import frozen_names
from polymodal.training.initialization import load_pretrained, with_encoders, with_pretrained
from polymodal.training.optimizer import OptimizerConfig
from polymodal.types import Budget
from tiny_checkpoints import IMAGE_MODELS, SMALL, TEXT_MODELS, save, save_siglip_tokenizer


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_an_image_tower_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_config(IMAGE_MODELS[kind]())
    save(model, tmp_path)
    config = PretrainedImageConfig.read(str(tmp_path))
    encoder = config.build().eval()
    assert isinstance(encoder.model, torch.nn.Module)
    encoder.load_pretrained()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        patches, pooled = encoder(image)
        whole = model.vision_model if hasattr(model, "vision_model") else model
        if kind == "siglip2":
            cut = image.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, -1)
            shapes = torch.tensor([[4, 4], [4, 4]])
            expected = whole(cut, pixel_attention_mask=torch.ones(2, 16, dtype=torch.long), spatial_shapes=shapes)
        else:
            expected = whole(pixel_values=image)
    assert (config.image_size, config.patch_size, config.width) == (32, 8, 32)
    assert patches.shape == (2, 16, 32)
    if kind == "aimv2_vision_model":
        reference = expected.last_hidden_state.mean(1)
    elif kind == "vit":
        reference = expected.last_hidden_state[:, 0]
    else:
        reference = expected.pooler_output
    torch.testing.assert_close(pooled, reference, atol=1e-5, rtol=1e-4)
    if kind != "clip":
        torch.testing.assert_close(patches, expected.last_hidden_state[:, -16:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", IMAGE_MODELS)
def test_activation_checkpointing_keeps_fewer_activations_of_a_tower(kind: str, tmp_path: Path) -> None:
    save(transformers.AutoModel.from_config(IMAGE_MODELS[kind]()), tmp_path)
    encoder, image, found = PretrainedImageConfig.read(str(tmp_path)).build().train(), torch.randn(2, 3, 32, 32), []
    encoder.load_pretrained()
    for _ in range(2):
        torch.manual_seed(0)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x), x)[1], lambda x: x):
            loss = encoder(image)[1].square().sum()
        encoder.zero_grad()
        loss.backward()
        gradients = {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}
        found.append((gradients, sum(one.numel() for one in kept)))
        checkpoint_activations(encoder)
    (expected, whole), (gradients, fewer) = found
    assert fewer < 0.8 * whole
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_a_text_tower_gives_what_transformers_gives_and_padding_changes_nothing(kind: str, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_config(TEXT_MODELS[kind]())
    save(model, tmp_path)
    config = PretrainedTextConfig.read(str(tmp_path))
    encoder = config.build(300).eval()
    encoder.load_pretrained()
    text = Tokens(torch.randint(3, 300, (3, 9)), torch.tensor([9, 4, 6]))
    with torch.no_grad():
        _, packing, pooled = encoder(text)
        alone = model(input_ids=text.ids[1:2, :4]).last_hidden_state[0]
    decoder = kind in ("qwen3", "gpt2")
    assert (config.pool_type, config.causal) == (("eos", True) if decoder else ("avg", False))
    torch.testing.assert_close(pooled[1], alone[-1] if decoder else alone.mean(0), atol=1e-4, rtol=1e-4)
    assert packing.mask.sum() == 19


def test_sentence_transformers_pooling_is_followed(bert_folder: Path, tmp_path: Path) -> None:
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    told = tmp_path / "1_Pooling" / "config.json"
    told.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert PretrainedTextConfig.read(str(tmp_path)).pool_type == "cls"
    told.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="max_tokens"):
        PretrainedTextConfig.read(str(tmp_path))


AUDIO_MODELS: dict[str, Callable[[], Any]] = {
    "whisper": lambda: transformers.WhisperModel(
        transformers.WhisperConfig(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    ),
    "wav2vec2": lambda: transformers.Wav2Vec2Model(
        transformers.Wav2Vec2Config(**SMALL, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2)
    ),
    "wav2vec2-bert": lambda: transformers.Wav2Vec2BertModel(transformers.Wav2Vec2BertConfig(**SMALL)),
}  # fmt: skip


@pytest.mark.parametrize("kind", AUDIO_MODELS)
def test_an_audio_tower_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = AUDIO_MODELS[kind]()
    save(model, tmp_path)
    config = PretrainedAudioConfig.read(str(tmp_path))
    encoder = config.build().eval()
    encoder.load_pretrained()
    waves = [
        np.random.default_rng(n).normal(0, 0.1, length).astype(np.float32) for n, length in enumerate((16000, 9000))
    ]
    with torch.no_grad():
        tokens, pooled = encoder(pad(waves))
        extractor = encoder.extractor
        if kind == "whisper":
            features = extractor(waves, sampling_rate=16000, return_tensors="pt")
            expected = model.encoder(features["input_features"]).last_hidden_state
            assert tokens.lengths.tolist() == [50, 29]  # 1 s and 0.5625 s of 20 ms, begun ones count
        elif kind == "wav2vec2":
            features = extractor(
                waves, sampling_rate=16000, return_tensors="pt", padding=True, return_attention_mask=True
            )
            expected = model(features["input_values"]).last_hidden_state  # its convolutions were trained without a mask
            assert tokens.lengths.tolist() == [49, 27]
        else:
            features = extractor(waves, sampling_rate=16000, return_tensors="pt")
            expected = model(features["input_features"], attention_mask=features["attention_mask"]).last_hidden_state
            assert tokens.lengths.tolist() == [49, 27]
    torch.testing.assert_close(tokens.values, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled[1], expected[1, : tokens.lengths[1]].mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_a_language_model_reads_vectors_in_the_place_of_words(kind: str, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(TEXT_MODELS[kind]())
    save(model, tmp_path)
    config = read_language_model(str(tmp_path))
    decoder = config.build(300).eval()
    assert isinstance(decoder, PretrainedLanguageModel)
    decoder.load_pretrained()
    ids = torch.randint(3, 300, (2, 7))
    row = torch.cat([ids[:1], ids[1:]], dim=1)  # both in one row
    document = torch.tensor([[1] * 7 + [2] * 7])
    position = torch.arange(7).repeat(2)[None]
    with torch.no_grad():
        logits = decoder.logits(decoder(decoder.embedding(row), position, document)).unflatten(1, (2, 7))[0]
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)
        decoding = Decoding(max_new_tokens=5)
        written = decoder.generate(
            decoder.embedding(ids), torch.arange(7).expand(2, 7), torch.ones_like(ids), None, 2, decoding
        )
        expected = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=2, pad_token_id=2)[
            :, 7:
        ].tolist()
    assert written == [text[: text.index(2)] if 2 in text else text for text in expected]
    with pytest.raises(UserError, match="no place for experts"):
        config.build(300, ("text", "image"))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_pretrained_dual_encoder_gives_the_logits_of_transformers(
    kind: str, clip_folder: Path, emoji: Corpus, tmp_path: Path
) -> None:
    if kind == "siglip":
        save(transformers.SiglipModel(IMAGE_MODELS["siglip"]()), tmp_path)
        folder = save_siglip_tokenizer(tmp_path, ["a red fruit"] * 20)
    else:
        folder = clip_folder
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():  # what released models print: SigLIP L/16-384, and CLIP's clamp at 4.6052
        model.logit_scale.fill_(math.log(118.2) if kind == "siglip" else 4.6052)
    model.save_pretrained(folder)
    recipe = with_pretrained({"clip": clip, "siglip": siglip}[kind].Recipe(), f"hf:{folder}")
    processor = fit_processor(recipe, emoji)
    method = recipe.build(processor).eval()
    load_pretrained(method)
    method.load_pretrained_weights(pretrained.pretrained_weights(str(folder)))
    texts = ["a red fruit", "a smiling face with heart eyes"]
    tokens, image = processor.tokenizer(texts), torch.randn(3, 3, 32, 32)
    ids = tokens.ids
    if kind == "siglip":  # padded to the full length with the tokenizer's padding, which the configuration has wrong
        padding = {"padding": "max_length", "max_length": 16, "truncation": True}
        ids = processor.tokenizer.tokenizer(texts, **padding, return_tensors="pt")["input_ids"]
        assert tokens.content_mask.sum(1).tolist() == (tokens.lengths - 1).tolist()
        assert bool(tokens.content_mask[:, 0].all())  # no start mark
    with torch.no_grad():
        vectors = method.embed({"image": image, "text": tokens})
        logits = method.logits(vectors["image"], vectors["text"])
        mask = tokens.mask.long() if kind == "clip" else None
        expected = model(input_ids=ids, attention_mask=mask, pixel_values=image).logits_per_image
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)
    if kind == "clip":
        assert processor.image.mean == (0.48, 0.45, 0.4)
    (loss,) = method.losses({"image": image[:2], "text": tokens}).values()
    loss.backward()
    assert method.logit_scale.logit_scale.grad.abs() > 1e-4  # beyond the bound, it still learns


def test_a_siglip_run_is_exported_at_its_own_temperature(tmp_path: Path, small_emoji: Corpus) -> None:
    source = tmp_path / "source"
    model = transformers.SiglipModel(IMAGE_MODELS["siglip"]())
    save(model, source)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(118.2))
    model.save_pretrained(source)
    save_siglip_tokenizer(source, ["a red fruit"] * 20)
    optimizer = OptimizerConfig(learning_rate=1e-5)
    recipe = with_pretrained(siglip.Recipe(batch_size=8, optimizer=optimizer), f"hf:{source}")
    run = train(recipe, small_emoji, Budget(steps=2), init=f"hf:{source}")
    assert run.model.logit_scale().item() == pytest.approx(118.2, rel=1e-3)
    (tmp_path / "export").mkdir()
    assert to_transformers(run, tmp_path / "export")[1] < 1e-3
    exported = transformers.AutoModel.from_pretrained(tmp_path / "export", trust_remote_code=True)
    assert exported.logit_scale.exp().item() == pytest.approx(118.2, rel=1e-3)


def test_a_locked_pretrained_text_tower_trains_the_rest_and_opens_without_its_source(
    bert_folder: Path, small_emoji: Corpus, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in bert_folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    recipe = with_encoders(clip.Recipe(freeze=("text",), batch_size=32), {"text_encoder": f"hf:{source}"})
    run = train(recipe, small_emoji, Budget(steps=12), out=tmp_path / "run")
    losses = [entry["losses"]["contrastive"] for entry in run.history if "losses" in entry]
    assert losses[-1] < losses[0]
    pretrained = transformers.BertModel.from_pretrained(bert_folder, add_pooling_layer=False).state_dict()
    kept = run.model.text_encoder.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in pretrained.items())
    vectors = run.embed(text=["a red fruit"])["text"]
    for file in source.iterdir():
        file.unlink()
    opened = load_run(tmp_path / "run")
    assert type(opened.recipe.text) is PretrainedTextConfig
    torch.testing.assert_close(opened.embed(text=["a red fruit"])["text"], vectors)


def test_peft_trains_low_rank_updates_of_a_pretrained_tower(
    bert_folder: Path, small_emoji: Corpus, tmp_path: Path
) -> None:
    targets = ("text_encoder.model.*.query", "text_encoder.model.*.value", "*_projection")
    recipe = with_encoders(
        clip.Recipe(
            batch_size=32, lora_rank=2, lora_target_modules=targets, optimizer=OptimizerConfig(learning_rate=1e-2)
        ),
        {"text_encoder": f"hf:{bert_folder}"},
    )
    run = train(recipe, small_emoji, Budget(steps=6), out=tmp_path / "run")
    pretrained = transformers.BertModel.from_pretrained(bert_folder, add_pooling_layer=False).state_dict()
    trained = run.model.text_encoder.model.state_dict()
    assert trained.keys() == pretrained.keys()  # merged: no trace of the updates is left
    changed = {name for name in pretrained if not torch.equal(trained[name], pretrained[name])}
    assert changed == {f"encoder.layer.{n}.attention.self.{kind}.weight" for n in (0, 1) for kind in ("query", "value")}
    torch.testing.assert_close(
        load_run(tmp_path / "run").embed(text=["a face"])["text"], run.embed(text=["a face"])["text"]
    )


def test_gpt2_takes_low_rank_updates_too(tmp_path: Path) -> None:
    save(transformers.GPT2Model(TEXT_MODELS["gpt2"]()), tmp_path)
    encoder = PretrainedTextConfig.read(str(tmp_path)).build(300).eval()
    text = Tokens(torch.randint(3, 300, (2, 5)), torch.tensor([5, 3]))
    assert encoder.add_lora(2, "text_encoder", ("*c_attn",)) == 2
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_" in name:
                parameter.normal_()
        before, merged = encoder(text)[2], dict(merged_parameters(encoder))
        encoder.merge_lora()
        assert merged.keys() == dict(encoder.named_parameters()).keys()
        for name, parameter in encoder.named_parameters():
            torch.testing.assert_close(merged[name], parameter, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(text)[2], before, atol=1e-5, rtol=1e-4)
    assert not any("lora" in name for name in encoder.state_dict())


def test_what_freeze_means() -> None:
    model = clip.CLIP(clip.Recipe(), 300)
    frozen = frozen_names(model, ("text",))
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("text_encoder.")}
    assert frozen_names(model, ("*.bias",)) == {n for n, _ in model.named_parameters() if n.endswith(".bias")}
    with pytest.raises(UserError, match="did you mean 'text'"):
        frozen_names(model, ("txt",))


def test_every_wrong_source_is_one_sentence(
    polymodal: Any, bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bert_folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | {"intermediate_size": 32}))
    wrong = {
        ("vision", "clip-vit"): "write hf:NAME",
        ("vision", "hf:nobody/no-such-model"): "is neither a folder",
        ("vision", f"hf:{tmp_path / 'empty'}"): "no config.json",
        ("vision", f"hf:{bert_folder}"): "has no image tower",
        ("audio", f"hf:{bert_folder}"): "has no tower that --audio could replace",
        ("lm", f"hf:{bert_folder}"): "has no tower that --lm could replace",
        ("init", f"hf:{bert_folder}"): "no dual encoder",
    }
    for (flag, source), expected in wrong.items():
        with pytest.raises(UserError, match=expected):
            with_pretrained(clip.Recipe(), source) if flag == "init" else with_encoders(clip.Recipe(), {flag: source})
    fits_not = PretrainedTextConfig.read(str(broken)).build(300)
    with pytest.raises(
        UserError, match=r"does not fit BertModel: no weights of its shape are there for encoder\.layer"
    ):
        fits_not.load_pretrained()
    command = ("train", "clip", "--corpus", "emoji", "--budget", "1steps")
    done = polymodal(*command, "--text-encoder", f"hf:{broken}")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert not list((tmp_path / "runs").iterdir())  # what the command began is gone, so that the mended one may use it


@pytest.mark.usefixtures("emoji_is_small")
def test_init_and_towers_from_the_command_line(polymodal: Any, clip_folder: Path, bert_folder: Path) -> None:
    common = ("train", "clip", "--corpus", "emoji", "--budget", "2steps", "--batch-size", "16")
    done = polymodal(*common, "--init", f"hf:{clip_folder}", "--out", "a")
    assert done.returncode == 0, done.stderr
    towers = ("--vision", f"hf:{clip_folder}", "--text-encoder", f"hf:{bert_folder}")
    done = polymodal(*common, *towers, "--freeze", "text", "image",
                     "--out", "b")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = polymodal("compare", "clip", f"clip --text-encoder hf:{bert_folder} --freeze text", "--corpus", "emoji",
                     "--budget", "2steps", "--seeds", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_an_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        folder_of("nobody/no-such-model")
