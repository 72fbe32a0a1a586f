"""Fusion in the backbone: gates at 0, parallel pairs, and what reads the other backbone."""

from __future__ import annotations

import torch

from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.layers.fusion_in_backbone import Context, GatedFusion
from polymodal.modalities.text import Tokens
from polymodal.models.fusion_in_backbone import FusionInBackbone, RobertaConfig


def backbone(alpha_init: float = 0.0) -> FusionInBackbone:
    torch.manual_seed(0)
    image = SwinEncoderConfig(16, 2, 8, (1, 2), (1, 2), 4)
    return FusionInBackbone(image, RobertaConfig(30, 8, 12, 3, 3), 30, 2, alpha_init).eval()


def test_gates_at_0_make_the_fusion_encoder_the_dual_encoder_and_open_first() -> None:
    """Fusion mode is dual mode up to the last norm; gates have a gradient, and cross-attention has none yet."""
    model, image, text = backbone(), torch.randn(2, 3, 16, 16), Tokens.of([[1, 5, 6, 2], [1, 7, 2]])
    fused, apart = model(image, text), model(image, text, fused=False)
    assert torch.equal(fused.words, apart.words)
    assert all(torch.equal(a, b) for a, b in zip(fused.maps, apart.maps, strict=True))
    assert torch.equal(model.upper_text(*model.lower_text(text)), apart.words)
    norm = model.text_encoder.blocks[-1].norm2
    assert torch.allclose(norm(model(image, text, last_norm=False).words), fused.words, atol=1e-6)
    (fused.words[text.mask].square().sum() + fused.maps[-1].pow(3).sum()).backward()
    fusions = [module for module in model.modules() if isinstance(module, GatedFusion)]
    assert len(fusions) == 4
    for fusion in fusions:
        assert fusion.alpha.grad is not None
        assert float(fusion.alpha.grad) != 0
        assert not any(parameter.grad.any() for parameter in fusion.cross_attention.parameters())


def test_pairs_are_updated_in_parallel_and_only_fusion_reads_the_other() -> None:
    model = backbone(alpha_init=1.0)
    image, text = torch.randn(2, 3, 16, 16), Tokens.of([[1, 5, 6, 2], [1, 7, 8, 2]])
    (x, _), (words, mask) = model.lower_image(image), model.lower_text(text)
    blocks, texts = model.image_encoder.blocks[1], model.text_encoder.blocks[1:]
    for image_block, text_block in zip(blocks, texts, strict=True):
        before = x
        x = image_block(x, None, Context(words, mask))
        words = text_block(words, mask, Context(before.flatten(1, 2)))
    states = model(image, text)
    assert torch.allclose(states.words, words, atol=1e-6)
    assert torch.allclose(states.maps[-1], x, atol=1e-6)
    other = Tokens(text.ids.flip(0), text.lengths)
    assert not torch.allclose(model(image, other).maps[-1], x, atol=1e-3)
