"""Blocks between an encoder and a language model: equal to transformers and torch, masks by plain loops."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.idefics.configuration_idefics import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from polymodal.errors import UserError
from polymodal.layers.c_abstractor import CAbstractor
from polymodal.layers.cross_attention import CrossAttention, CrossAttentionBlock
from polymodal.layers.gated_cross_attention import GatedCrossAttention, media_attention_mask
from polymodal.layers.perceiver_resampler import AttentionPool, PerceiverResampler
from polymodal.layers.qformer import QFormer, QFormerConfig, QFormerMode, qformer_mask
from polymodal.layers.token_pooling import average_pool, pixel_shuffle


def joined(*parts: nn.Linear) -> dict[str, Tensor]:
    """One linear layer's weights out of several, by kind."""
    return {
        kind: torch.cat([getattr(part, kind) for part in parts]).detach()
        for kind in ("weight", "bias")
        if getattr(parts[0], kind) is not None
    }


def test_cross_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, theirs = CrossAttention(12, 3, 8), nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True)
    key, value = own.key_value.weight.chunk(2)
    theirs.q_proj_weight.data, theirs.k_proj_weight.data, theirs.v_proj_weight.data = own.query.weight, key, value
    theirs.in_proj_bias.data = torch.cat([own.query.bias, own.key_value.bias])
    theirs.out_proj.load_state_dict(own.out.state_dict())
    x, context = torch.randn(2, 4, 12), torch.randn(2, 5, 8)
    padding = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    expected = theirs(x, context, context, key_padding_mask=~padding)[0]
    torch.testing.assert_close(own(x, context, padding), expected)
    pairs = torch.rand(2, 4, 5) < 0.6
    pairs[:, :, 0] = True
    expected = theirs(x, context, context, attn_mask=~pairs.repeat_interleave(3, 0))[0]
    torch.testing.assert_close(own(x, context, pairs), expected)


def test_a_query_that_sees_nothing_gets_zero_and_finite_gradients() -> None:
    own = CrossAttention(8, 2, bias=False)
    context = torch.randn(1, 3, 8, requires_grad=True)
    mask = torch.tensor([[[True, False, True], [False, False, False]]])
    y = own(torch.randn(1, 2, 8), context, mask)
    assert not y[0, 1].any()
    assert y[0, 0].any()
    y.sum().backward()
    assert context.grad is not None
    assert bool(context.grad.isfinite().all())
    assert not context.grad[0, 1].any()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_without_context_is_torchs_encoder_layer(norm: str) -> None:
    torch.manual_seed(0)
    own = CrossAttentionBlock(8, 2, norm=norm, cross_attention=False)  # type: ignore[arg-type]
    theirs = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=norm == "pre")
    attention = own.self_attention
    theirs.self_attn.in_proj_weight.data = torch.cat([attention.query.weight, attention.key_value.weight])
    theirs.self_attn.in_proj_bias.data = torch.cat([attention.query.bias, attention.key_value.bias])
    theirs.self_attn.out_proj.load_state_dict(attention.out.state_dict())
    theirs.linear1.load_state_dict(own.mlp[0].state_dict())
    theirs.linear2.load_state_dict(own.mlp[2].state_dict())
    x, mask = torch.randn(2, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(own(x, mask=mask)[mask], expected[mask])


@pytest.mark.parametrize("attend", ["last", "all"])
def test_text_attends_to_the_images_before_it(attend: str) -> None:
    positions = torch.tensor([[0, 1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 1, 0]]).bool()
    document = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2], [1, 1, 1, 2, 2, 2, 2, 0]])
    for of_rows in (None, document):
        mask = media_attention_mask(positions, 3, attend, of_rows)  # type: ignore[arg-type]
        for row in range(2):
            images = positions[row].nonzero().flatten().tolist()
            for place in range(8):
                seen = [n for n, image in enumerate(images) if image <= place]
                seen = seen[-1:] if attend == "last" else seen
                if of_rows is not None:
                    seen = [n for n in seen if document[row, images[n]] == document[row, place]]
                assert mask[row, place].nonzero().flatten().tolist() == seen


def test_gated_cross_attention_starts_as_the_identity_and_opens() -> None:
    torch.manual_seed(0)
    own = GatedCrossAttention(16, 2, 12, head_dim=4)
    x, media = torch.randn(1, 4, 16), torch.randn(1, 2, 3, 12)
    mask = media_attention_mask(torch.tensor([[False, True, True, False]]), 2)
    assert torch.equal(own(x, media, mask), x)
    own(x, media, mask).sum().backward()
    assert own.attention_gate.grad is not None
    assert own.mlp_gate.grad is not None
    assert own.attention_gate.grad.item() != 0
    assert own.mlp_gate.grad.item() != 0
    assert not own.attention.query.weight.grad.any()
    with torch.no_grad():
        own.attention_gate.fill_(1.0)
    y = own(x, media, mask)
    other = media.clone()
    other[:, 0] += 1  # which the second text token sees, and no other
    changed = (own(x, other, mask) != y).any(2)[0]
    assert changed.tolist() == [False, True, False, False]
    assert torch.equal(y[0, 0], x[0, 0])


def test_the_resampler_is_that_of_idefics() -> None:
    torch.manual_seed(0)
    settings = IdeficsConfig(vision_config={"embed_dim": 16})
    theirs = IdeficsPerceiverResampler(settings, 16, 2, 2, 6, 5).eval()
    for block in theirs.blocks:
        block[0].qk_layer_norms = False
    own = PerceiverResampler(16, 2, 2, 5, head_dim=6, activation=F.relu)
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    own.latents.data = theirs.latents
    own.norm.load_state_dict(theirs.layer_norm.state_dict())
    for layer, (attention, feed_forward) in zip(own.layers, theirs.blocks, strict=True):
        layer.norm_media.load_state_dict(attention.context_layer_norm.state_dict())
        layer.norm_latents.load_state_dict(attention.latents_layer_norm.state_dict())
        layer.attention.query.load_state_dict(attention.q_proj.state_dict())
        layer.attention.key_value.load_state_dict(joined(attention.k_proj, attention.v_proj))
        layer.attention.out.load_state_dict(attention.output_proj.state_dict())
        layer.norm_mlp.load_state_dict(feed_forward.ln.state_dict())
        layer.mlp[0].load_state_dict(feed_forward.fc.state_dict())
        layer.mlp[2].load_state_dict(feed_forward.c_proj.state_dict())
    media = torch.randn(2, 7, 16)
    torch.testing.assert_close(own(media), theirs(media), rtol=1e-5, atol=1e-5)


def test_resampled_frames_have_times_and_padding_has_no_influence() -> None:
    torch.manual_seed(0)
    own = PerceiverResampler(16, 1, 2, 4, max_frames=3)
    video = torch.randn(1, 3, 5, 16)
    assert own(video).shape == (1, 4, 16)
    assert not torch.allclose(own(video), own(video.flip(1)), atol=1e-4)
    mask = torch.ones(1, 3, 5, dtype=torch.bool)
    mask[:, 2] = False
    torch.testing.assert_close(own(video, mask), own(video[:, :2]))
    with pytest.raises(UserError, match="max_frames=3"):
        own(torch.randn(1, 4, 5, 16))
    pool = AttentionPool(16, 2, 6)
    torch.testing.assert_close(pool(video[:, 0], mask[:, 0].clone()), pool(video[:, 0]))
    assert pool(video[:, 0]).shape == (1, 6, 16)


def qformers() -> tuple[transformers.Blip2QFormerModel, nn.Module, nn.Module, QFormer]:
    """transformers' Q-Former with its embeddings of text, and ours with their weights."""
    from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "encoder_hidden_size": 20, "max_position_embeddings": 10}
    settings = transformers.Blip2QFormerConfig(**sizes, use_qformer_text_input=True)
    theirs, embeddings = transformers.Blip2QFormerModel(settings).eval(), Blip2TextEmbeddings(settings)
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    own = QFormer(QFormerConfig(16, 3, 2, 24, 4, 20, 2, 30, 10)).eval()
    own.token_embedding.load_state_dict(embeddings.word_embeddings.state_dict())
    own.pos_embed.load_state_dict(embeddings.position_embeddings.state_dict())
    own.norm.load_state_dict(theirs.layernorm.state_dict())
    for block, layer in zip(own.blocks, theirs.encoder.layer, strict=True):
        pairs = [(block.attention, block.norm1, layer.attention)]
        if block.cross_attention is not None:
            pairs.append((block.cross_attention, block.norm_cross, layer.crossattention))
        for attention, norm, source in pairs:
            attention.query.load_state_dict(source.attention.query.state_dict())
            attention.key_value.load_state_dict(joined(source.attention.key, source.attention.value))
            attention.out.load_state_dict(source.output.dense.state_dict())
            norm.load_state_dict(source.output.LayerNorm.state_dict())
        for feed_forward, norm, first, second in (
            (block.query_mlp, block.query_norm, layer.intermediate_query, layer.output_query),
            (block.text_mlp, block.text_norm, layer.intermediate, layer.output),
        ):
            feed_forward[0].load_state_dict(first.dense.state_dict())
            feed_forward[2].load_state_dict(second.dense.state_dict())
            norm.load_state_dict(second.LayerNorm.state_dict())
    assert [block.cross_attention is not None for block in own.blocks] == [True, False, True]
    return theirs, embeddings.word_embeddings, embeddings.position_embeddings, own


@pytest.mark.parametrize("mode", ["itc", "itm", "itg"])
def test_the_q_former_is_that_of_transformers(mode: QFormerMode) -> None:
    theirs, words, positions, own = qformers()
    media = torch.randn(2, 7, 20)
    media_mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
    ids, text_mask = torch.randint(1, 30, (2, 5)), torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
    mask = qformer_mask(4, text_mask, mode)
    with torch.no_grad():
        embedded = torch.cat([own.queries.expand(2, -1, -1), words(ids) + positions(torch.arange(5))], dim=1)
        expected = theirs(
            embedded,
            query_length=4,
            attention_mask=mask[:, None],
            encoder_hidden_states=media,
            encoder_attention_mask=media_mask[:, None, None],
        ).last_hidden_state
        queries, text = own(media, media_mask, ids, text_mask, mode)
    torch.testing.assert_close(queries, expected[:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text[text_mask], expected[:, 4:][text_mask], rtol=1e-5, atol=1e-5)


def test_what_queries_and_text_see_of_each_other() -> None:
    text_mask = torch.tensor([[True, True, True, False]])
    for mode in ("itc", "itm", "itg"):
        mask = qformer_mask(2, text_mask, mode)[0]  # type: ignore[arg-type]
        for i in range(5):  # the last text token is padding
            for j in range(6):
                query_i, query_j = i < 2, j < 2
                if query_i:
                    seen = query_j or mode == "itm"
                elif query_j:
                    seen = mode != "itc"
                else:
                    seen = mode != "itg" or j <= i
                assert bool(mask[i, j]) == (seen and j != 5), (mode, i, j)


def test_uni_modal_passes_are_those_of_the_joint_pass() -> None:
    _, _, _, own = qformers()
    media, ids = torch.randn(2, 7, 20), torch.randint(1, 30, (2, 5))
    queries, text = own(media, ids=ids, mode="itc")
    torch.testing.assert_close(own(media)[0], queries)
    torch.testing.assert_close(own(ids=ids)[1], text)
    assert own(media)[1].shape[1] == 0
    with pytest.raises(UserError, match="without a vocabulary"):
        QFormer(QFormerConfig())(ids=ids)


def test_pixel_shuffle_joins_blocks_and_torch_takes_them_apart() -> None:
    tokens = torch.randn(2, 6 * 4, 3)
    y = pixel_shuffle(tokens, (6, 4), 2)
    rows = tokens.unflatten(1, (6, 4))
    for row in range(3):
        for column in range(2):
            block = [rows[:, 2 * row + i, 2 * column + j] for i in range(2) for j in range(2)]
            assert torch.equal(y[:, row * 2 + column], torch.cat(block, dim=1))
    maps = y.unflatten(1, (3, 2)).unflatten(3, (4, 3)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    assert torch.equal(nn.PixelShuffle(2)(maps).flatten(2).transpose(1, 2), tokens)
    with pytest.raises(UserError, match="3 x 4 patches does not divide"):
        pixel_shuffle(torch.randn(1, 12, 3), (3, 4))


def test_average_pool_is_the_mean_of_every_block() -> None:
    tokens = torch.randn(1, 24, 2)
    y = average_pool(tokens, (4, 6), (2, 3))
    rows = tokens.unflatten(1, (4, 6))
    expected = [rows[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2, 4)]
    torch.testing.assert_close(y, torch.stack(expected, dim=1))
    assert average_pool(tokens, (4, 6), (3, 4)).shape == (1, 12, 2)


def test_the_c_abstractor_takes_any_grid_and_keeps_places_apart() -> None:
    torch.manual_seed(0)
    own = CAbstractor(12, 10, side=2, hidden_dim=16, depth=2, grid=6)
    assert own(torch.randn(2, 36, 12), (6, 6)).shape == (2, 4, 10)
    assert own(torch.randn(2, 40, 12), (4, 10)).shape == (2, 4, 10)
    own(torch.randn(2, 36, 12), (6, 6)).sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in own.parameters())
    plain = CAbstractor(12, 10, side=2, depth=0, grid=4)
    tokens = torch.randn(1, 16, 12)
    placed = tokens + plain.pos_embed.flatten(2).transpose(1, 2)
    torch.testing.assert_close(plain(tokens, (4, 4)), plain.readout(average_pool(placed, (4, 4), (2, 2))))
