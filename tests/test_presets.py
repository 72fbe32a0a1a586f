"""Published sizes against the parameter counts of transformers' own models, built without memory."""

import pytest
import torch
import transformers

from polymodal.encoders.presets import INTERNLM2_1_8B, VIT_SIZES, bert, clip, vit
from polymodal.errors import UserError


def parameters(build) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


SIZES = {  # as the published configurations say them
    "Ti": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "S": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "B": {},  # the default configuration
    "L": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "H": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120},
}


@pytest.mark.parametrize("size", VIT_SIZES)
@pytest.mark.parametrize(("patch_size", "image_size"), [(16, 224), (14, 224), (32, 384)])
def test_vision_transformers_have_the_parameters_of_vit_but_for_a_bias_and_a_norm(size, patch_size, image_size):
    config = transformers.ViTConfig(**SIZES[size], patch_size=patch_size, image_size=image_size)
    theirs = parameters(lambda: transformers.ViTModel(config, add_pooling_layer=False))
    ours, width = vit(size, patch_size, image_size), config.hidden_size
    # Ours has CLIP's norm before the blocks, and no bias of the patch embedding.
    assert parameters(ours.build) == theirs + 2 * width - width
    assert ours.num_heads == config.num_attention_heads


@pytest.mark.parametrize("size", ["base", "large"])
def test_text_transformers_have_the_parameters_of_bert_but_for_token_types(size):
    config = transformers.BertConfig(**(SIZES["L"] if size == "large" else {}))
    theirs = parameters(lambda: transformers.BertModel(config, add_pooling_layer=False))
    ours = bert(size)
    assert ours.vocab_size == config.vocab_size
    assert ours.num_heads == config.num_attention_heads
    # Pre-norm has its further norm after the blocks, post-norm after the embeddings.
    assert parameters(lambda: ours.build(config.vocab_size)) == theirs - config.type_vocab_size * config.hidden_size


def test_internlm2_has_the_parameters_of_the_released_model():
    config = INTERNLM2_1_8B
    theirs = transformers.LlamaConfig(  # InternLM2's blocks are Llama's with one matrix for query, key and value
        vocab_size=92_544,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=8192,
    )
    assert parameters(lambda: config.build(config.vocab_size)) == 1_889_110_016
    assert parameters(lambda: transformers.LlamaForCausalLM(theirs)) == 1_889_110_016


def sized(width, depth, heads):
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


CLIPS = {
    "ViT-B/32": ({}, {}, {}),  # the default configuration
    "ViT-B/16": ({}, {"patch_size": 16}, {}),
    "ViT-L/14": (sized(768, 12, 12), sized(1024, 24, 16) | {"patch_size": 14}, {"projection_dim": 768}),
    "ViT-H/14": (sized(1024, 24, 16), sized(1280, 32, 16) | {"patch_size": 14}, {"projection_dim": 1024}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_towers_have_exactly_the_parameters_of_clip(name):
    text, vision, space = CLIPS[name]
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, **space)
    ours = clip(name)
    vision_parameters = parameters(lambda: transformers.CLIPVisionModel(config.vision_config))
    text_parameters = parameters(lambda: transformers.CLIPTextModel(config.text_config))
    assert parameters(ours.image.build) == vision_parameters
    assert parameters(lambda: ours.text.build(config.text_config.vocab_size)) == text_parameters
    assert ours.text.context_length == config.text_config.max_position_embeddings
    assert (ours.text.vocab_size, ours.text.num_heads) == (49_408, config.text_config.num_attention_heads)
    assert ours.embed_dim == config.projection_dim


def test_clip_at_336_pixels_has_more_positions():
    small, large = (parameters(clip("ViT-L/14", size).image.build) for size in (224, 336))
    assert large - small == (24**2 - 16**2) * 1024


@pytest.mark.parametrize("make", [lambda: vit("X"), lambda: bert("huge"), lambda: clip("ViT-B/33")])
def test_unknown_sizes_are_errors(make):
    with pytest.raises(UserError, match="There is no"):
        make()
