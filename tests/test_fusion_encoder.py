"""Fusion encoders: BLIP's text encoder as transformers computes it, METER's and FIBER's by their invariants."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers.models.blip.modeling_blip_text import BlipTextModel

from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttentionBlock
from polymodal.models.fusion_encoder import (
    Fusion,
    FusionEncoder,
    FusionEncoderConfig,
    MultimodalTextEncoder,
    MultimodalTextEncoderConfig,
)

TEXT_MASK = torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
IMAGE_MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}


def copy_bert_attention(own: nn.Module, norm: nn.Module, source: nn.Module) -> None:
    own.query.load_state_dict(source.self.query.state_dict())
    for kind in ("weight", "bias"):
        joined = torch.cat([getattr(source.self.key, kind), getattr(source.self.value, kind)])
        getattr(own.key_value, kind).data = joined.detach()
    own.out.load_state_dict(source.output.dense.state_dict())
    norm.load_state_dict(source.output.LayerNorm.state_dict())


def copy_bert_block(own: CrossAttentionBlock, layer: nn.Module) -> None:
    """A layer of transformers' BLIP text model into a post-norm block."""
    copy_bert_attention(own.self_attention, own.norm1, layer.attention)
    copy_bert_attention(own.cross_attention, own.norm_cross, layer.crossattention)
    own.mlp[0].load_state_dict(layer.intermediate.dense.state_dict())
    own.mlp[2].load_state_dict(layer.output.dense.state_dict())
    own.norm2.load_state_dict(layer.output.LayerNorm.state_dict())


def blip() -> tuple[BlipTextModel, MultimodalTextEncoder]:
    """transformers' BLIP text model, and ours with its weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "encoder_hidden_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 10}
    settings = transformers.BlipTextConfig(**sizes, **MARKS, layer_norm_eps=1e-5, is_decoder=True)
    settings._attn_implementation = "eager"  # it adds masks to logits, and those of sdpa are booleans
    theirs = BlipTextModel(settings, add_pooling_layer=False).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    own = MultimodalTextEncoder(
        MultimodalTextEncoderConfig(width=16, depth=2, num_heads=2, vocab_size=30, context_length=10), 12
    ).eval()
    own.token_embedding.load_state_dict(theirs.embeddings.word_embeddings.state_dict())
    own.pos_embed.load_state_dict(theirs.embeddings.position_embeddings.state_dict())
    own.norm.load_state_dict(theirs.embeddings.LayerNorm.state_dict())
    for block, layer in zip(own.blocks, theirs.encoder.layer, strict=True):
        copy_bert_block(block, layer)
    return theirs, own


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_blips_text_encoder(causal: bool) -> None:
    theirs, own = blip()
    ids, image = torch.randint(30, (2, 5)), torch.randn(2, 6, 12)
    with torch.no_grad():
        expected = theirs(
            ids,
            TEXT_MASK.long(),
            encoder_hidden_states=image,
            is_decoder=causal,
            use_cache=False,
        ).last_hidden_state  # without a mask of the image, which transformers' BLIP does not pass on to its attention
        found = own(ids, TEXT_MASK, image, causal=causal)
    torch.testing.assert_close(found[TEXT_MASK], expected[TEXT_MASK], rtol=1e-4, atol=1e-5)


def test_albefs_lower_blocks_encode_text_and_its_upper_ones_fuse() -> None:
    torch.manual_seed(0)
    config = MultimodalTextEncoderConfig(width=16, depth=4, fusion_depth=2, num_heads=2, vocab_size=30)
    own = MultimodalTextEncoder(config, 12)
    assert [block.cross_attention is not None for block in own.blocks] == [False, False, True, True]
    ids, image = torch.randint(30, (2, 5)), torch.randn(2, 6, 12)
    text = own.encode_text(ids, TEXT_MASK)
    torch.testing.assert_close(own.fuse(text, TEXT_MASK, image, IMAGE_MASK), own(ids, TEXT_MASK, image, IMAGE_MASK))
    alone = own.encode_text(ids[1:, :3], TEXT_MASK[1:, :3])
    torch.testing.assert_close(text[1:, :3], alone)
    with pytest.raises(UserError, match="fusion_depth"):
        blip()[1].fuse(text, TEXT_MASK, image)


def model(fusion: Fusion, **settings: object) -> FusionEncoder:
    torch.manual_seed(0)
    return FusionEncoderConfig(fusion, 16, 3, 0, 2, **settings).build(10, 12)  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", ["cross_attention", "co_attention", "merged_attention"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing_and_modalities_read_each_other(fusion: Fusion, norm: str) -> None:
    own = model(fusion, norm=norm)
    text, image = torch.randn(2, 5, 10), torch.randn(2, 6, 12)
    fused = own(text, TEXT_MASK, image, IMAGE_MASK)
    alone = own(text[1:, :3], TEXT_MASK[1:, :3], image[1:, :4])
    torch.testing.assert_close(fused.text[1:, :3], alone.text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.image[1:, :4], alone.image, rtol=1e-4, atol=1e-5)
    other_image = own(text, TEXT_MASK, image + 1, IMAGE_MASK)
    other_text = own(text + 1, TEXT_MASK, image, IMAGE_MASK)
    assert not torch.allclose(other_image.text, fused.text, atol=1e-4)
    assert torch.allclose(other_text.image, fused.image, atol=1e-6) == (fusion == "cross_attention")


def test_co_attention_reads_the_block_before() -> None:
    own = model("co_attention")
    text, image = torch.randn(2, 5, 10), torch.randn(2, 6, 12)
    x = own.text_projection(text) + own.type_embed[0]
    y = own.image_projection(image) + own.type_embed[1]
    for text_block, image_block in zip(own.text_blocks, own.image_blocks, strict=True):
        before = x
        x = text_block(x, y, TEXT_MASK, IMAGE_MASK)
        y = image_block(y, before, IMAGE_MASK, TEXT_MASK)
    found = own(text, TEXT_MASK, image, IMAGE_MASK)
    torch.testing.assert_close(found.text, own.text_norm(x))
    torch.testing.assert_close(found.image, own.image_norm(y))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_closed_gates_are_a_dual_encoder_and_they_learn_to_open(norm: str) -> None:
    own = model("co_attention", gated=True, norm=norm)
    text, image = torch.randn(2, 5, 10), torch.randn(2, 6, 12)
    fused, apart = own(text, TEXT_MASK, image, IMAGE_MASK), own(text, TEXT_MASK, image, IMAGE_MASK, fused=False)
    assert torch.equal(fused.text, apart.text)
    assert torch.equal(fused.image, apart.image)
    weighted = (fused.text * torch.randn_like(fused.text)).sum() + (fused.image * torch.randn_like(fused.image)).sum()
    weighted.backward()
    gates = [weight for name, weight in own.named_parameters() if name.endswith(".gate")]
    assert len(gates) == 6
    assert all(gate.grad is not None and gate.grad.item() != 0 for gate in gates)
    with torch.no_grad():
        for gate in gates:
            gate.fill_(0.5)
    opened = own(text, TEXT_MASK, image, IMAGE_MASK)
    assert not torch.allclose(opened.text, apart.text, atol=1e-4)
    assert not torch.allclose(opened.image, apart.image, atol=1e-4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="more than the depth"):
        FusionEncoderConfig(depth=2, fusion_depth=3)
    with pytest.raises(UserError, match="no cross-attention"):
        FusionEncoderConfig("merged_attention", gated=True)
    with pytest.raises(UserError, match="apart"):
        model("merged_attention")(torch.randn(2, 5, 10), TEXT_MASK, torch.randn(2, 6, 12), fused=False)
    with pytest.raises(UserError, match="cross_attention only"):
        MultimodalTextEncoderConfig("co_attention")
