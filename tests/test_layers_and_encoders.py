"""Packed sequences give what padded ones would, and padding never leaks."""

import pytest
import torch
from torch.nn import functional as F

from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.layers.positions import sine_positions_2d
from polymodal.layers.transformer import Packing, Transformer, last_token, mean_of_tokens
from polymodal.modalities.image import patchify
from polymodal.modalities.text import Tokens


def tokens(lengths: list[int], vocabulary: int = 50, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=generator)
    return Tokens(ids, torch.tensor(lengths))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_transformer_equals_each_sequence_alone(causal):
    torch.manual_seed(0)
    model = Transformer(width=16, depth=2, heads=4, causal=causal)
    lengths = [5, 1, 9, 3, 9]
    packing = Packing.of(tokens(lengths).mask)
    x = torch.randn(sum(lengths), 16)
    together = model(x, packing)
    for alone, part in zip(x.split(lengths), together.split(lengths), strict=True):
        torch.testing.assert_close(model(alone[None])[0], part, rtol=1e-4, atol=1e-5)


def test_packing_there_and_back():
    text = tokens([2, 4, 1])
    packing = Packing.of(text.mask)
    padded = torch.randn(3, 4, 5) * text.mask[..., None]
    torch.testing.assert_close(packing.pad(packing.pack(padded)), padded)


def test_pooling_sees_only_real_tokens():
    lengths = [3, 1, 4]
    packing, x = Packing.of(tokens(lengths).mask), torch.randn(8, 6)
    parts = x.split(lengths)
    torch.testing.assert_close(mean_of_tokens(x, packing), torch.stack([part.mean(0) for part in parts]))
    torch.testing.assert_close(last_token(x, packing), torch.stack([part[-1] for part in parts]))


@pytest.mark.parametrize("pooling", ["mean", "end"])
@pytest.mark.parametrize("causal", [False, True])
def test_caption_vector_does_not_depend_on_what_stands_behind_it(pooling, causal):
    torch.manual_seed(0)
    encoder = TextEncoder(TextEncoderConfig(width=16, heads=2, depth=2, context=12, pooling=pooling, causal=causal), 50)
    text = tokens([4, 10, 7])
    alone = Tokens(text.ids[:1, :4], text.lengths[:1])
    other_padding = Tokens(torch.where(text.mask, text.ids, 49 - text.ids), text.lengths)
    pooled = encoder(text)[2]
    torch.testing.assert_close(pooled[:1], encoder(alone)[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, encoder(other_padding)[2])


def test_transformer_equals_torch_encoder_layers():
    torch.manual_seed(0)
    ours = Transformer(width=12, depth=2, heads=3)
    layer = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, F.gelu, batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj": "attention.out",
        "linear1": "widen",
        "linear2": "narrow",
        "norm1": "norm_1",
        "norm2": "norm_2",
    }
    state = {}
    for name in theirs.state_dict():
        ours_name = name.replace("layers", "blocks")
        for their_part, our_part in names.items():
            ours_name = ours_name.replace(their_part, our_part)
        state[name] = ours.state_dict()[ours_name]
    theirs.load_state_dict(state)
    x = torch.randn(4, 7, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_patchify_keeps_reading_order_and_every_value():
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    torch.testing.assert_close(patches[0, 1], image[0, :, 0:2, 2:4].flatten())
    convolution = torch.randn(5, 3, 2, 2)
    by_convolution = F.conv2d(image, convolution, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ convolution.flatten(1).T, by_convolution, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_image_encoder_gives_one_token_a_patch(pooling):
    config = ImageEncoderConfig(size=16, patch=4, width=12, heads=3, pooling=pooling)
    patches, pooled = ImageEncoder(config)(torch.randn(2, 3, 16, 16))
    assert patches.shape == (2, 16, 12)
    assert pooled.shape == (2, 12)
    if pooling == "mean":
        torch.testing.assert_close(pooled, patches.mean(1))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not tile"):
        ImageEncoder(ImageEncoderConfig(size=32, patch=7))
    with pytest.raises(ValueError, match="does not divide"):
        Transformer(width=10, depth=1, heads=4)


def test_sine_positions_tell_row_and_column():
    places = sine_positions_2d(4, 16).unflatten(0, (4, 4))
    assert (places[1, :, :8] == places[1, :1, :8]).all()
    assert (places[:, 2, 8:] == places[:1, 2, 8:]).all()
    assert (torch.pdist(places.flatten(0, 1)) > 0.1).all()
    with pytest.raises(ValueError, match="rows and columns"):
        sine_positions_2d(4, 18)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_registers_and_sine_positions_leave_a_token_a_patch(pooling):
    torch.manual_seed(0)
    config = ImageEncoderConfig(size=16, patch=4, pooling=pooling, positions="sine", registers=3)
    encoder = ImageEncoder(config)
    image = torch.randn(2, 3, 16, 16)
    tokens, pooled = encoder(image)
    assert tokens.shape == (2, 16, 64)
    assert "positions" not in dict(encoder.named_parameters())
    pooled.square().sum().backward()
    assert encoder.registers.grad.abs().sum() > 0
    again = ImageEncoder(config)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(image)[0], tokens)
    with torch.no_grad():
        encoder.registers += 1.0 * torch.randn(3, 64)
    assert not torch.allclose(encoder(image)[1], pooled, atol=1e-4)
