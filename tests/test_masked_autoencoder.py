"""The masked autoencoder is MAE: equal to transformers with the same weights and noise; any grid of patches."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.masks import restore_indices, visible_indices
from polymodal.errors import UserError
from polymodal.layers.patches import patchify_nd, sine_positions_nd, unpatchify_nd
from polymodal.layers.positions import sine_positions_2d
from polymodal.modalities.image import patchify
from polymodal.models.masked_autoencoder import (
    MaskedAutoencoder,
    MaskedAutoencoderConfig,
    random_patch_mask,
)
from polymodal.objectives.masked_modeling import masked_patch_loss


def copied_blocks(layers: object, prefix: str) -> dict[str, Tensor]:
    """transformers' ViT layers under the names of ours."""
    weights = {}
    for number, layer in enumerate(layers):  # type: ignore[arg-type]
        own = f"{prefix}transformer.blocks.{number}."
        attention = layer.attention
        for kind in ("weight", "bias"):
            qkv = [getattr(getattr(attention, f"{part}_proj"), kind) for part in "qkv"]
            weights[f"{own}attention.qkv.{kind}"] = torch.cat(qkv)
            weights[f"{own}attention.out.{kind}"] = getattr(attention.o_proj, kind)
            parts = (layer.layernorm_before, layer.layernorm_after, layer.mlp.fc1, layer.mlp.fc2)
            names = block_parts(own, kind)
            weights |= {name: getattr(part, kind) for name, part in zip(names, parts, strict=True)}
    return weights


def block_parts(own: str, kind: str) -> list[str]:
    """Our names of both norms and both layers of the MLP of a block, in this order."""
    block = MaskedAutoencoder(MaskedAutoencoderConfig(depth=1)).encoder.transformer.blocks[0]
    attention = {id(part) for part in block.get_submodule("attention").modules()}
    norms = [name for name, part in block.named_modules() if isinstance(part, torch.nn.LayerNorm)]
    linears = [n for n, p in block.named_modules() if isinstance(p, torch.nn.Linear) and id(p) not in attention]
    return [f"{own}{name}.{kind}" for name in norms + linears]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_it_gives_what_transformers_gives(norm_pix_loss: bool) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    sizes |= {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
    sizes |= {"decoder_intermediate_size": 96, "image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-5}
    settings = transformers.ViTMAEConfig(**sizes, norm_pix_loss=norm_pix_loss)
    published = transformers.ViTMAEForPreTraining(settings).eval()
    for parameter in published.parameters():  # biases and norms start at 0 and 1, where mistakes would not show
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    own = MaskedAutoencoder(
        MaskedAutoencoderConfig((16, 16), (4, 4), 3, 32, 2, 4, 24, 1, 4, norm_pix_loss=norm_pix_loss)
    )
    embeddings, decoder = published.vit.embeddings, published.decoder
    projection = embeddings.patch_embeddings.projection
    head = decoder.decoder_pred  # whose outputs are ordered row, column, channel
    weights = {
        "encoder.class_token": embeddings.cls_token[0, 0],
        "encoder.pos_embed": embeddings.position_embeddings[0],
        "encoder.patch_embedding.weight": projection.weight.flatten(1),
        "encoder.patch_embedding.bias": projection.bias,
        "encoder.norm.weight": published.vit.layernorm.weight,
        "encoder.norm.bias": published.vit.layernorm.bias,
        "decoder.embedding.weight": decoder.decoder_embed.weight,
        "decoder.embedding.bias": decoder.decoder_embed.bias,
        "decoder.mask_token": decoder.mask_token[0, 0],
        "decoder.pos_embed": decoder.decoder_pos_embed[0],
        "decoder.norm.weight": decoder.decoder_norm.weight,
        "decoder.norm.bias": decoder.decoder_norm.bias,
        "decoder.head.weight": head.weight.unflatten(0, (16, 3)).transpose(0, 1).flatten(0, 1),
        "decoder.head.bias": head.bias.unflatten(0, (16, 3)).T.flatten(),
    }
    weights |= copied_blocks(published.vit.layers, "encoder.")
    weights |= copied_blocks(decoder.decoder_layers, "decoder.")
    own.load_state_dict(weights)
    image, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        expected = published(image, noise=noise)
        mask = random_patch_mask(noise, 0.75)
        output = own(image, mask)
        loss = own.losses({"image": image, "mask": mask})["reconstruction"]
    given = expected.logits.unflatten(2, (16, 3)).transpose(2, 3).flatten(2)
    torch.testing.assert_close(output.prediction, given, rtol=1e-5, atol=1e-5)
    assert torch.equal(output.mask, expected.mask.bool())
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "patch"), [((12,), (4,)), ((8, 12), (4, 2)), ((4, 8, 6), (2, 4, 3))])
def test_patches_come_back_and_stand_as_a_convolution_has_them(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    values = torch.randn(2, 3, *size)
    patches = patchify_nd(values, patch)
    grid = [side // part for side, part in zip(size, patch, strict=True)]
    assert torch.equal(unpatchify_nd(patches, patch, grid), values)
    weight = torch.randn(5, 3, *patch)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    expected = convolve(values, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches @ weight.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_square_patches_and_positions_are_those_of_images() -> None:
    image = torch.randn(1, 3, 8, 8)
    assert torch.equal(patchify_nd(image, (4, 4)), patchify(image, 4))
    ours, theirs = sine_positions_nd((3, 3), 8), sine_positions_2d(3, 8)
    assert torch.allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-5)  # the same channels in another order
    assert sine_positions_nd((2, 3, 4), 16).shape == (24, 16)
    assert len({tuple(row.tolist()) for row in sine_positions_nd((2, 3, 4), 16)}) == 24


@pytest.mark.parametrize(
    ("size", "patch", "channels"),
    [((4, 16, 16), (2, 8, 8), 3), ((8, 8, 8), (4, 4, 4), 1), ((16, 24), (16, 8), 1), ((32,), (4,), 2)],
)
def test_any_grid_trains_and_masked_values_have_no_influence(
    size: tuple[int, ...], patch: tuple[int, ...], channels: int
) -> None:
    torch.manual_seed(0)
    config = MaskedAutoencoderConfig(size, patch, channels, 24, 1, 4, 16, 1, 4, mask_ratio=0.5, pos_embed="learned")
    own = MaskedAutoencoder(config, "values")
    values = torch.randn(2, channels, *size)
    mask = random_patch_mask(torch.rand(2, config.num_patches), config.mask_ratio)
    own.losses({"values": values, "mask": mask})["reconstruction"].backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in own.parameters())
    output = own(values, mask)
    changed = patchify_nd(values, patch)
    changed = torch.where(output.mask[..., None], changed + 1, changed)
    assert torch.equal(own(unpatchify_nd(changed, patch, config.grid), mask).prediction, output.prediction)
    rebuilt = patchify_nd(own.reconstruct(values, mask), patch)
    assert torch.equal(rebuilt[~output.mask], patchify_nd(values, patch)[~output.mask])
    assert not torch.equal(rebuilt[output.mask], patchify_nd(values, patch)[output.mask])
    assert own.encoder(values).shape == (2, config.num_patches + 1, 24)
    assert own.encoder.pooled(values).shape == (2, 24)


def test_the_lowest_noise_stays_visible() -> None:
    noise = torch.rand(5, 20)
    mask = random_patch_mask(noise, 0.75)
    assert mask.sum(1).tolist() == [15] * 5
    keep, restore = visible_indices(mask), restore_indices(mask)
    for row in range(5):
        lowest = sorted(range(20), key=lambda n: noise[row, n].item())[:5]
        assert keep[row].tolist() == sorted(lowest)
        order = [*keep[row].tolist(), *(n for n in range(20) if n not in lowest)]
        assert [order[index] for index in restore[row].tolist()] == list(range(20))


def test_masks_of_a_batch_are_taken_and_uneven_ones_refused() -> None:
    own = MaskedAutoencoder(MaskedAutoencoderConfig((4, 16, 16), (1, 8, 8)), "video")
    tubes = torch.tensor([[True, False, True, True]]).repeat(2, 4)
    video = torch.randn(2, 3, 4, 16, 16)
    output = own(video, tubes)
    assert torch.equal(output.mask, tubes)
    assert output.tokens.shape[1] == 1 + 4
    tubes[0, 0] = False
    with pytest.raises(UserError, match="same number of masked positions"):
        own(video, tubes)


def test_the_loss_counts_masked_patches_only() -> None:
    prediction, target = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, False, False, True], [False, False, True, False]])
    expected = torch.stack([(prediction[i, j] - target[i, j]).square().mean() for i, j in [(0, 0), (0, 3), (1, 2)]])
    torch.testing.assert_close(masked_patch_loss(prediction, target, mask, False), expected.mean())
    assert masked_patch_loss(prediction, target, torch.zeros_like(mask)).item() == 0


def test_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(UserError, match="8 x 8 do not tile an input of 30 x 32"):
        MaskedAutoencoder(MaskedAutoencoderConfig(input_size=(30, 32)))


def test_errors_of_each_example_have_the_loss_as_their_mean() -> None:
    torch.manual_seed(0)
    model, values = MaskedAutoencoder(MaskedAutoencoderConfig((16, 16), (4, 4))), torch.randn(3, 3, 16, 16)
    output = model(values)
    errors = model.decoder.reconstruction_errors(values, output.tokens, visible_indices(output.mask))
    torch.testing.assert_close(errors.mean(), model.losses({"image": values, "mask": output.mask})["reconstruction"])
    others = model.decoder.reconstruction_errors(values[1:], output.tokens[1:], visible_indices(output.mask[1:]))
    torch.testing.assert_close(errors[1:], others)
