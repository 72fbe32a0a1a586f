"""Local and global attention: equal to dense attention with its mask, and linear in the length."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from polymodal.errors import UserError
from polymodal.layers.local_attention import LocalGlobalAttention, local_attention, local_global_mask, longformer
from polymodal.layers.transformer import Packing, cls_index


@pytest.mark.parametrize(
    ("length", "window", "num_global"), [(23, 4, 1), (16, 8, 3), (5, 12, 1), (17, 6, 0), (1, 2, 1)]
)
def test_blocks_give_what_dense_attention_with_the_mask_gives(length, window, num_global):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, length, 4, requires_grad=True)
    mask = torch.arange(length) < torch.tensor([[length], [max(length - 6, 1)]])
    dense_mask = torch.zeros(2, length, length, dtype=torch.bool)
    for batch in range(2):
        for one in range(length):
            for other in range(length):
                near = abs(one - other) <= window // 2 or one < num_global or other < num_global
                dense_mask[batch, one, other] = near and mask[batch, other]
    assert torch.equal(local_global_mask(mask, window, num_global), dense_mask)
    found = local_attention(query, key, value, mask, window, num_global)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask[:, None])
    local = (mask & (torch.arange(length) >= num_global))[:, None, :, None]
    assert torch.allclose(found * local, expected.nan_to_num() * local, atol=1e-6)
    (gradient,) = torch.autograd.grad((found * local).sum(), query)
    assert gradient.isfinite().all()


def test_global_tokens_have_projections_of_their_own():
    torch.manual_seed(0)
    attention, x = LocalGlobalAttention(8, 2, window=4), torch.randn(2, 19, 8)
    y = attention(x)
    query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in attention.qkv_global(x).chunk(3, -1))
    first = F.scaled_dot_product_attention(query[:, :, :1], key, value).transpose(1, 2).flatten(2)
    assert torch.allclose(y[:, :1], attention.out(first), atol=1e-6)


def test_the_last_token_reaches_the_first_and_back_in_one_block_and_others_do_not():
    torch.manual_seed(0)
    transformer, x = longformer(8, 1, 2, window=4).eval(), torch.randn(1, 40, 8)
    changed = []
    for place in (39, 0):
        other = x.index_add(1, torch.tensor([place]), torch.ones(1, 1, 8))
        changed.append((transformer(other) - transformer(x)).abs().sum(-1)[0])
    assert changed[0][0] > 1e-4  # CLS attends to the last token
    assert changed[1][39] > 1e-4  # and the last token to CLS
    assert torch.equal(changed[0][1:37] > 1e-6, torch.zeros(36, dtype=torch.bool))


def test_padding_and_packing_change_nothing():
    torch.manual_seed(0)
    transformer, lengths = longformer(8, 2, 2, window=4).eval(), torch.tensor([13, 6])
    x = torch.randn(19, 8)
    tight, wide = (Packing.of(torch.arange(width) < lengths[:, None]) for width in (13, 20))
    states = transformer(x, tight)
    assert torch.allclose(states, transformer(x, wide), atol=1e-6)
    assert torch.allclose(states[:13], transformer(x[None, :13])[0], atol=1e-6)
    rows = cls_index(tight)
    assert torch.allclose(transformer(x, tight, rows), states[rows], atol=1e-6)


def test_a_window_has_two_sides():
    with pytest.raises(UserError, match="even number of tokens, and at least 2, not 3"):
        LocalGlobalAttention(8, 2, window=3)
