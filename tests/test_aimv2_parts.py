"""Parts of AIMv2: encoder, LiT and probe of the official code; captions, and areas at native resolution."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.data.columns.native_image import native_areas
from polymodal.encoders.prefix_image import PrefixImageEncoder, PrefixImageEncoderConfig
from polymodal.encoders.swiglu_text import SwiGLUTextEncoderConfig
from polymodal.evaluation.tasks.attentive_probe import LabelledTokens, fit_probe, probabilities
from polymodal.layers.attentive_probe import AttentiveProbe
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import PatchedImages
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.models.dual_encoder import DualEncoderConfig
from polymodal.models.locked_image_tuning import AttentionPoolHead, ContrastiveEncoder
from polymodal.models.multimodal_decoder import MultimodalDecoder, MultimodalDecoderConfig

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/aimv2.npz").items()}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CONFIG = PrefixImageEncoderConfig(24, 8, width=16, depth=2, num_heads=2, mlp_dim=24)
TEXT = {r"trunk\.": "transformer.", r"transformer\.post_trunk_norm": "norm_post", r"attn\.proj": "attention.out"}
TEXT |= {"attn": "attention", "norm_(?=\\d)": "norm", r"mlp\.fc2": "feed_forward.down", "preprocessor.text_": ""}
TEXT |= {"preprocessor.positional_embedding": "positions"}


def encoder(**changes: str) -> PrefixImageEncoder:
    """With the weights of the official code."""
    built = dataclasses.replace(CONFIG, **changes).build()
    built.load_pretrained_weights({k.removeprefix("vision/"): v for k, v in GOLDEN.items() if k.startswith("vision/")})
    return built


def official_probe(prefix: str, probe: AttentiveProbe) -> AttentiveProbe:
    names = {"query": "cls_token", "key.weight": "k.weight", "value.weight": "v.weight", "linear.weight": ""}
    names |= {"linear.bias": ""} if probe.linear.bias is not None else {}
    state = {
        ours: GOLDEN[prefix + (theirs or ours)].view_as(probe.get_parameter(ours)) for ours, theirs in names.items()
    }
    probe.load_state_dict(state, strict=False)
    return probe


def test_encoder_with_prefix_and_at_native_resolution_is_the_official_one() -> None:
    tokens = encoder()(GOLDEN["image"])[0].values
    torch.testing.assert_close(tokens, GOLDEN["tokens"], **CLOSE)
    with_prefix = encoder()(GOLDEN["image"], GOLDEN["prefix"])[0].values
    torch.testing.assert_close(with_prefix, GOLDEN["tokens_prefix"], **CLOSE)
    torch.testing.assert_close(with_prefix[3], tokens[3], **CLOSE)  # M = I is no mask
    native, wide = encoder(pos_embed="sine"), GOLDEN["wide"][0]
    several = native(PatchedImages.of([wide[:, :8, :16], wide], 8))[0]
    torch.testing.assert_close(several.values[1:], GOLDEN["wide_tokens"], **CLOSE)


def test_lit_and_the_attentive_probe_are_the_official_ones() -> None:
    text = SwiGLUTextEncoderConfig(50, 9, width=12, depth=2, num_heads=2, causal=True, pool_type="eos", mlp_dim=20)
    tower, head = text.build(50), AttentionPoolHead(16, 2)
    weights = {}
    for name in [name for name in GOLDEN if name.startswith("weight/text_encoder.")]:
        ours = name.removeprefix("weight/text_encoder.")
        for theirs, new in TEXT.items():
            ours = re.sub(theirs, new, ours)
        weights[ours] = GOLDEN[name]
    for number in range(2):
        gates = [weights.pop(f"transformer.blocks.{number}.mlp.{part}.weight") for part in ("fc1", "fc3")]
        weights[f"transformer.blocks.{number}.feed_forward.gate_up.weight"] = torch.cat(gates)
    tower.load_state_dict(weights)
    official_probe("weight/image_encoder.head.", head.probe)
    model = ContrastiveEncoder(encoder(), head, tower, DualEncoderConfig(8))
    for name in ("image", "text"):
        model.lit.get_parameter(f"{name}_projection.weight").data.copy_(GOLDEN[f"weight/{name}_projector.weight"])
    model.lit.logit_scale.logit_scale.data.copy_(GOLDEN["weight/log_logit_scale"])
    batch = {"image": GOLDEN["image"], "text": Tokens(GOLDEN["ids"], GOLDEN["lengths"])}
    for name, vectors in model.embed(batch).items():
        torch.testing.assert_close(vectors, GOLDEN[f"{name}_embeds"], **CLOSE)
    torch.testing.assert_close(model.lit_losses(batch)["contrastive"], GOLDEN["loss"], **CLOSE)
    probe, mask = official_probe("probe/", AttentiveProbe(16, 5, 2)), torch.ones(4, 9, dtype=torch.bool)
    torch.testing.assert_close(probe(GOLDEN["tokens"], mask), GOLDEN["probe_logits"], **CLOSE)
    torch.testing.assert_close(probe.eval()(GOLDEN["tokens"], mask), GOLDEN["probe_logits_eval"], **CLOSE)
    padded = probe(F.pad(GOLDEN["tokens"], (0, 0, 0, 2), value=9.0), F.pad(mask, (0, 2)))
    torch.testing.assert_close(padded, GOLDEN["probe_logits_eval"], **CLOSE)


def test_captions_are_the_most_probable_ones() -> None:
    decoder = MultimodalDecoder(MultimodalDecoderConfig(16, 1, 2, 32), 16, 192, 30).eval()
    features = Padded(torch.randn(3, 16, 16), torch.tensor([16, 7, 1]))  # of several lengths, as at native resolution
    written = decoder.generate_text(features, -1, Decoding(max_new_tokens=4))
    for row, words in enumerate(written):
        alone = Padded(features.values[row : row + 1, : features.lengths[row]], features.lengths[row : row + 1])
        states = decoder(alone, Tokens(torch.tensor([words]), torch.tensor([4]))).text
        assert decoder.text_head(states)[0].argmax(-1).tolist() == words


def test_native_areas_are_of_a_truncated_normal() -> None:
    areas = np.log2(native_areas(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), 7, 12))
    assert 7 <= areas.min() < 7.01
    assert 11.99 < areas.max() <= 12
    # A standard normal within one standard deviation has a variance of 0.2911.
    assert areas.mean() == pytest.approx(9.5, abs=0.05)
    assert areas.std() == pytest.approx(2.5 * 0.2911**0.5, abs=0.03)


def test_an_attentive_probe_finds_the_patch_that_says_the_class() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (160, 60, 60):
        tokens, labels = torch.randn(count, 9, 8, generator=generator), np.arange(count) % 3
        place = torch.randint(9, (count,), generator=generator)
        tokens[torch.arange(count), place] = 6 * torch.eye(8)[torch.from_numpy(labels)] + 6 * torch.eye(8)[7]
        parts.append(LabelledTokens(tokens, torch.ones(count, 9, dtype=torch.bool), labels))
    probe = fit_probe(parts[0], parts[1], 3)
    assert (probabilities(probe, parts[2]).argmax(1) == parts[2].labels).mean() > 0.9
    assert not probe.training
