"""Packed sequences give what padded ones would, and padding never leaks."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.native_image import NativeImageEncoderConfig
from polymodal.encoders.text import TextEncoder, TextEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.cross_attention import CrossAttentionTransformer
from polymodal.layers.positions import rotary_angles_2d, rotate, sine_positions_2d
from polymodal.layers.transformer import (
    DropPath,
    Packing,
    PostNormBlock,
    Transformer,
    eos_index,
    mean_pool,
    select_rows,
)
from polymodal.modalities.image import PatchedImages, patchify, to_patch_grid
from polymodal.modalities.text import Tokens
from polymodal.training.activation_checkpointing import checkpoint_activations


def tokens(lengths: list[int], vocabulary: int = 50, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (len(lengths), max(lengths)), generator=generator)
    return Tokens(ids, torch.tensor(lengths))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_transformer_equals_each_sequence_alone(causal):
    torch.manual_seed(0)
    model = Transformer(width=16, depth=2, num_heads=4, causal=causal)
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
    torch.testing.assert_close(mean_pool(x, packing), torch.stack([part.mean(0) for part in parts]))
    torch.testing.assert_close(select_rows(x, eos_index(packing)), torch.stack([part[-1] for part in parts]))


@pytest.mark.parametrize("pool_type", ["avg", "eos"])
@pytest.mark.parametrize("causal", [False, True])
def test_caption_vector_does_not_depend_on_what_stands_behind_it(pool_type, causal):
    torch.manual_seed(0)
    encoder = TextEncoder(
        TextEncoderConfig(width=16, num_heads=2, depth=2, context_length=12, pool_type=pool_type, causal=causal), 50
    )
    text = tokens([4, 10, 7])
    alone = Tokens(text.ids[:1, :4], text.lengths[:1])
    other_padding = Tokens(torch.where(text.mask, text.ids, 49 - text.ids), text.lengths)
    pooled = encoder(text)[2]
    torch.testing.assert_close(pooled[:1], encoder(alone)[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, encoder(other_padding)[2])


def test_transformer_equals_torch_encoder_layers():
    torch.manual_seed(0)
    ours = Transformer(width=12, depth=2, num_heads=3)
    layer = torch.nn.TransformerEncoderLayer(12, 3, 48, 0.0, F.gelu, batch_first=True, norm_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj": "attention.out",
        "linear1": "fc1",
        "linear2": "fc2",
        "norm1": "norm1",
        "norm2": "norm2",
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


def with_gradients(encoder: torch.nn.Module, pooled: torch.Tensor) -> list[torch.Tensor]:
    """The pooled vectors, and the gradients of something that hangs on all of them."""
    encoder.zero_grad()
    pooled.square().cumsum(1).sum().backward()
    return [pooled, *(torch.zeros_like(p) if p.grad is None else p.grad for p in encoder.parameters())]


IMAGE = ImageEncoderConfig(image_size=16, patch_size=4, width=16, num_heads=4, pool_type="cls")


@pytest.mark.parametrize(
    "config",
    [
        *(dataclasses.replace(IMAGE, depth=depth, registers=2) for depth in (0, 1, 3)),
        dataclasses.replace(IMAGE, pos_embed="rotary", registers=2),
        dataclasses.replace(IMAGE, pos_embed="sine"),
        *(dataclasses.replace(IMAGE, pool_type=pool_type) for pool_type in ("avg", "max")),
    ],
)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_pooled_image_vector_alone_is_that_of_the_whole_pass(config, activation_checkpointing):
    torch.manual_seed(0)
    encoder, images = ImageEncoder(config), torch.randn(3, 3, 16, 16)
    if activation_checkpointing:
        checkpoint_activations(encoder)
    whole = with_gradients(encoder, encoder(images)[1])
    torch.testing.assert_close(with_gradients(encoder, encoder.pooled(images)), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool_type", ["avg", "eos", "cls"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_pooled_caption_vector_alone_is_that_of_the_whole_pass(pool_type, causal, depth):
    torch.manual_seed(0)
    config = TextEncoderConfig(
        width=16, num_heads=2, depth=depth, context_length=12, pool_type=pool_type, causal=causal
    )
    encoder, text = TextEncoder(config, 50), tokens([4, 10, 7, 1])
    whole = with_gradients(encoder, encoder(text)[2])
    torch.testing.assert_close(with_gradients(encoder, encoder.pooled(text)), whole, rtol=1e-4, atol=1e-5)


def test_a_last_block_that_is_asked_for_one_token_computes_no_other():
    encoder, images = ImageEncoder(dataclasses.replace(IMAGE, width=64, depth=1)), torch.randn(2, 3, 16, 16)
    products = []
    for ask in (encoder, encoder.pooled):
        with FlopCounterMode(display=False) as counter:
            ask(images)
        products.append(counter.get_total_flops())
    mlp_and_output = 2 * (2 * 16) * (8 + 1) * 64**2  # of the sixteen patches of both images
    assert products[0] - products[1] == mlp_and_output


def test_chosen_rows_of_post_norm_blocks_are_those_of_the_whole():
    torch.manual_seed(0)
    model, packing = Transformer(width=16, depth=2, num_heads=4, kind=PostNormBlock), Packing.of(tokens([3, 5]).mask)
    x, rows = torch.randn(8, 16), torch.tensor([0, 2, 6])
    torch.testing.assert_close(model(x, packing, rows), model(x, packing)[rows], rtol=1e-4, atol=1e-5)


def test_examples_that_skip_a_branch_are_the_same_for_one_row_each():
    drop, branch = DropPath(0.5), torch.rand(64, 7, 3) + 1
    torch.manual_seed(0)
    whole = drop(branch)
    torch.manual_seed(0)
    torch.testing.assert_close(drop(branch[:, 0]), whole[:, 0])
    assert 0 < (whole == 0).all(dim=(1, 2)).sum() < 64


def test_patchify_keeps_reading_order_and_every_value():
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    torch.testing.assert_close(patches[0, 1], image[0, :, 0:2, 2:4].flatten())
    convolution = torch.randn(5, 3, 2, 2)
    by_convolution = F.conv2d(image, convolution, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ convolution.flatten(1).T, by_convolution, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stem", [(), (8,), (8, 6)])
@pytest.mark.parametrize("pool_type", ["avg", "max", "cls"])
def test_image_encoder_gives_one_token_a_patch(pool_type, stem):
    config = ImageEncoderConfig(image_size=16, patch_size=4, width=12, num_heads=3, pool_type=pool_type, stem=stem)
    patches, pooled = ImageEncoder(config)(torch.randn(2, 3, 16, 16))
    assert patches.shape == (2, 16, 12)
    assert pooled.shape == (2, 12)
    if pool_type == "avg":
        torch.testing.assert_close(pooled, patches.mean(1))
    if pool_type == "max":
        torch.testing.assert_close(pooled, patches.max(1).values)


def test_what_a_stem_makes_of_a_image_hangs_on_no_other_image():
    encoder = ImageEncoder(ImageEncoderConfig(image_size=16, patch_size=4, width=12, num_heads=3, stem=(8, 6)))
    images = torch.randn(3, 3, 16, 16)
    together = encoder.train()(images)[1]
    torch.testing.assert_close(together[1:2], encoder.eval()(images[1:2])[1], rtol=1e-4, atol=1e-5)
    together.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="do not tile"):
        ImageEncoder(ImageEncoderConfig(image_size=32, patch_size=7))
    with pytest.raises(UserError, match="no multiple of the stem's 8 px"):
        ImageEncoder(ImageEncoderConfig(image_size=32, patch_size=4, stem=(8, 8, 8)))
    with pytest.raises(UserError, match="does not divide"):
        Transformer(width=10, depth=1, num_heads=4)


def test_sine_positions_tell_row_and_column():
    places = sine_positions_2d(4, 16).unflatten(0, (4, 4))
    assert (places[1, :, :8] == places[1, :1, :8]).all()
    assert (places[:, 2, 8:] == places[:1, 2, 8:]).all()
    assert (torch.pdist(places.flatten(0, 1)) > 0.1).all()
    with pytest.raises(UserError, match="rows and columns"):
        sine_positions_2d(4, 18)


def test_of_a_prefix_all_is_seen_and_of_the_rest_what_came_before():
    torch.manual_seed(0)
    model = Transformer(width=16, depth=2, num_heads=4, causal=True)
    lengths, prefix = [6, 4], torch.tensor([3, 0])
    packing = dataclasses.replace(Packing.of(tokens(lengths).mask), prefix=prefix)
    x = torch.randn(10, 16)
    first, second = model(x, packing).split(lengths)
    torch.testing.assert_close(second, model(x[6:][None])[0], rtol=1e-4, atol=1e-5)

    def changed(place: int) -> list[bool]:
        """Which tokens of the first sequence another token at a place changes."""
        other = x.clone()
        other[place] = torch.randn(16)
        return (model(other, packing)[:6] - first).abs().amax(1).gt(1e-6).tolist()

    assert changed(2) == [True] * 6, "the prefix sees all of itself"
    assert changed(4) == [False] * 4 + [True] * 2, "the rest is causal"
    documents = Packing.of_segments(torch.tensor([[1, 1, 1, 2, 2, 0]]))
    together = model(x[:5], dataclasses.replace(documents, prefix=torch.tensor([2])))
    alone = dataclasses.replace(Packing.of(torch.ones(1, 3, dtype=torch.bool)), prefix=torch.tensor([2]))
    torch.testing.assert_close(together[:3], model(x[:3], alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[3:], model(x[3:5][None])[0], rtol=1e-4, atol=1e-5)


def test_rotary_positions_of_a_page_depend_on_distances_alone():
    query, key = torch.randn(2, 1, 1, 1, 16).double()
    rows, columns = torch.tensor([[3, 7, 4]]), torch.tensor([[2, 5, 1]])

    def product(shift: int, one: int, other: int) -> torch.Tensor:
        angles = rotary_angles_2d(rows + shift, columns + 2 * shift, 16, 100.0, query)
        turned = [rotate(x.expand(1, 1, 3, 16), angles)[0, 0] for x in (query, key)]
        return turned[0][one] @ turned[1][other]

    torch.testing.assert_close(product(0, 0, 1), product(5, 0, 1), rtol=1e-5, atol=1e-5)
    assert (product(0, 0, 1) - product(0, 0, 2)).abs() > 1e-3
    with pytest.raises(UserError, match="rows and columns"):
        rotary_angles_2d(rows, columns, 6, 100.0, query)


@pytest.mark.parametrize("pool_type", ["avg", "cls"])
def test_a_vision_transformer_with_rotary_positions(pool_type):
    torch.manual_seed(0)
    config = ImageEncoderConfig(image_size=16, patch_size=4, pool_type=pool_type, pos_embed="rotary", registers=2)
    encoder, image = ImageEncoder(config), torch.randn(2, 3, 16, 16)
    patches, pooled = encoder(image)
    assert patches.shape == (2, 16, 64)
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not torch.allclose(encoder(image.flip(3))[1], pooled, atol=1e-3), "it knows where patches stand"
    again = ImageEncoder(config)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(image)[0], patches)


def test_images_of_several_shapes_do_not_disturb_each_other():
    torch.manual_seed(0)
    encoder = NativeImageEncoderConfig(patch_size=4, max_patches=12).build()
    images = [torch.randn(3, 8, 24), torch.randn(3, 12, 12), torch.randn(3, 4, 4)]
    packed, packing, pooled = encoder(PatchedImages.of(images, 4))
    assert packed.shape == (12 + 9 + 1, 64), "no token is padding"
    assert packing.mask.sum(1).tolist() == [12, 9, 1]
    for number, image in enumerate(images):
        alone = encoder(PatchedImages.of([image], 4))[2]
        torch.testing.assert_close(alone[0], pooled[number], rtol=1e-4, atol=1e-5)
    wide, high = images[0], images[0].transpose(1, 2)
    assert not torch.allclose(*encoder(PatchedImages.of([wide, high], 4))[2], atol=1e-3)
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


SHAPES = {(640, 480): (3, 4), (40, 200): (7, 1), (9, 5): (1, 1), (3, 3): (1, 1)}


@pytest.mark.parametrize(("size", "grid"), SHAPES.items())
def test_a_image_keeps_its_shape(size, grid):
    made = to_patch_grid(PILImage.new("RGB", size, (10, 20, 30)), 8, 12)
    assert made.shape == (grid[0] * 8, grid[1] * 8, 3)
    assert (made == np.array([10, 20, 30])).all()


@pytest.mark.parametrize("pool_type", ["avg", "cls"])
def test_registers_and_sine_positions_leave_a_token_a_patch(pool_type):
    torch.manual_seed(0)
    config = ImageEncoderConfig(image_size=16, patch_size=4, pool_type=pool_type, pos_embed="sine", registers=3)
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


def test_fusion_ignores_padding_of_the_context() -> None:
    torch.manual_seed(0)
    fusion = CrossAttentionTransformer(16, 2, 4).eval()
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    fused = fusion(x, context, context_mask=mask)
    torch.testing.assert_close(fused[1:], fusion(x[1:], context[1:, :3]))
    assert not torch.allclose(fused[:1], fusion(x[:1], context[:1].flip(2)), atol=1e-3)
