"""Divided space-time attention against transformers' TimeSformer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import TimesformerConfig, TimesformerModel

from polymodal.encoders.video import DividedBlock, VideoEncoder, VideoEncoderConfig

ATTENTION = {
    "norm1": "layernorm_before",
    "attention.qkv": "attention.attention.qkv",
    "attention.out": "attention.output.dense",
    "norm2": "layernorm_after",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "temporal_norm": "temporal_layernorm",
    "temporal_attention.qkv": "temporal_attention.attention.qkv",
    "temporal_attention.out": "temporal_attention.output.dense",
    "temporal_fc": "temporal_dense",
}


def reference(frames: int) -> TimesformerModel:
    torch.manual_seed(0)
    model = TimesformerModel(
        TimesformerConfig(
            image_size=16,
            patch_size=8,
            num_frames=frames,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            layer_norm_eps=1e-5,
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def same_weights(model: TimesformerModel, frames: int) -> VideoEncoder:
    encoder = VideoEncoder(VideoEncoderConfig(frames, 16, 8, 16, 2, 2, attention="divided", pool_type="cls")).eval()
    encoder.norm_pre = nn.Identity()  # CLIP's, see the module's documentation
    embeddings = model.embeddings
    with torch.no_grad():
        encoder.patch_embedding.weight.copy_(embeddings.patch_embeddings.projection.weight.flatten(1))
        encoder.patch_embedding.bias.copy_(embeddings.patch_embeddings.projection.bias)
        encoder.class_token.copy_(embeddings.cls_token[0, 0] + embeddings.position_embeddings[0, 0])
        encoder.space.copy_(embeddings.position_embeddings[0, 1:])
        encoder.time.copy_(embeddings.time_embeddings[0, :, None])
        encoder.norm_post.load_state_dict(model.layernorm.state_dict())
        for own, theirs in zip(encoder.transformer, model.encoder.layer, strict=True):
            for name, other in ATTENTION.items():
                own.get_submodule(name).load_state_dict(theirs.get_submodule(other).state_dict())
    return encoder


def test_patches_and_class_token_are_those_of_transformers() -> None:
    frames = 3
    model, video = reference(frames), torch.randn(2, frames, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens, pooled = same_weights(model, frames)(video)
        expected = model(video).last_hidden_state
    # transformers orders patches by position, then by frame.
    assert torch.allclose(pooled, expected[:, 0], atol=1e-5)
    assert torch.allclose(
        tokens.unflatten(1, (frames, 4)), expected[:, 1:].unflatten(1, (4, frames)).transpose(1, 2), atol=1e-5
    )


def test_only_the_first_block_begins_with_attention_over_time() -> None:
    first, second = VideoEncoder(VideoEncoderConfig(frames=2, depth=2)).transformer
    assert first.temporal_fc.weight.abs().sum() > 0
    assert second.temporal_fc.weight.abs().sum() == second.temporal_fc.bias.abs().sum() == 0


def test_drop_path_keeps_the_class_token_the_same_in_all_frames() -> None:
    torch.manual_seed(0)
    block = DividedBlock(8, 2, with_class=True, drop_path_rate=0.5).train()
    x = torch.randn(4, 3, 5, 8)
    x[:, :, 0] = x[:, :1, 0]
    y = block(x)
    assert torch.allclose(y[:, :, 0], y[:, :1, 0].expand(-1, 3, -1), atol=1e-6)
    assert not torch.allclose(y, block(x))


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = VideoEncoder(VideoEncoderConfig(4, 224, 16, 768, 12, 12, attention="divided", pool_type="cls"))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(121.4e6, rel=0.005)
