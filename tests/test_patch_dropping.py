"""Patch dropping: kept patches have their own positions, and all patches give the usual encoder."""

import itertools

import pytest
import torch

from polymodal.data.masks import mask_patches, visible_indices
from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.rng import ExampleRNG

KINDS = list(itertools.product(("avg", "cls", "map", "avg_all"), ("learned", "sine", "rotary"), (0, 2)))


@pytest.mark.parametrize(("pool_type", "pos_embed", "registers"), KINDS)
def test_kept_patches_keep_their_positions(pool_type, pos_embed, registers):
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(16, 4, 16, 2, 2, (), pool_type, pos_embed, registers)).double()
    image = torch.randn(2, 3, 16, 16).double()
    every = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(image, every), encoder(image))
    torch.testing.assert_close(encoder.pooled(image, every), encoder.pooled(image))
    kept = torch.tensor([[0, 3, 5], [15, 2, 7]])
    tokens, pooled = encoder(image, kept)
    assert tokens.shape == (2, 3, 16)
    torch.testing.assert_close(encoder.pooled(image, kept), pooled)
    # Patches in another order are the same set of tokens.
    shuffled, same = encoder(image, kept[:, [2, 0, 1]])
    torch.testing.assert_close(shuffled, tokens[:, [2, 0, 1]])
    torch.testing.assert_close(same, pooled)
    # What is dropped has no influence.
    noise = torch.zeros(16, 16, dtype=torch.float64)
    noise[4:8, 0:4] = 1.0  # patch 4, which neither image keeps
    torch.testing.assert_close(encoder(image + noise, kept)[1], pooled)
    assert not torch.allclose(encoder(image, kept + torch.tensor([[0, 0, 1], [0, 0, 1]]))[1], pooled)


def test_a_convolutional_stem_sees_dropped_patches():
    encoder = ImageEncoder(ImageEncoderConfig(16, 4, 16, 1, 2, stem=(8,)))
    with pytest.raises(UserError, match="convolutional stem"):
        encoder(torch.zeros(1, 3, 16, 16), torch.tensor([[0]]))


def test_masks_sample_what_is_kept():
    kept = visible_indices(mask_patches(64, 0.5, ExampleRNG.of(0, 0, 3)))
    assert kept.shape == (3, 32)
    assert len({tuple(row) for row in kept.tolist()}) == 3
