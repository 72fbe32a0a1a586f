"""Encoders of pages: places as in LayoutLMv3 and MarkupLM, padding that changes nothing, gradients everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polymodal.encoders.document import DocumentEncoderConfig
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.webpage import WebpageEncoderConfig
from polymodal.layers.positions import LayoutEmbedding, SpatialBias, relative_bucket
from polymodal.layers.transformer import Attention, Packing
from polymodal.modalities.document import Word, page_tokens
from polymodal.modalities.text import TextTokenizer
from polymodal.modalities.webpage import TAG_COUNT, TAG_NUMBERS, Node, element_tokens

TEXTS = ["Invoice number", "Total 12.50 EUR", "Thank you", "a red fruit"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS * 20, 400, 24)


WORDS = [
    [Word("Total", (100, 200, 180, 220)), Word("12.50", (800, 200, 860, 221)), Word("EUR", (870, 200, 900, 220))],
    [Word("Thank", (10, 900, 60, 930)), Word("you", (70, 900, 90, 930))],
]
NODES = [
    [
        Node("body", -1, "", "/html/body", (0, 0, 9, 9)),
        Node("p", 0, "Thank you", "/html/body/p[2]", (0, 0, 9, 9)),
        Node("x-own", 0, "Total", "/html/body/x-own[999]", (0, 0, 9, 9)),
    ],
    [Node("body", -1, "a red fruit", "/html/body", (0, 0, 9, 9))],
]


def test_pieces_know_their_word_and_its_box(tokenizer: TextTokenizer) -> None:
    page = page_tokens(WORDS, tokenizer)
    assert tokenizer.decode(page.tokens)[1].replace(" ", "") == "thankyou"
    for row, words in enumerate(WORDS):
        real = page.word[row] >= 0
        assert page.word[row, real].unique().tolist() == list(range(len(words)))
        assert page.boxes[row, real].tolist() == [list(words[n].box) for n in page.word[row, real].tolist()]
        assert not page.boxes[row, ~real].any()
    assert torch.equal(page.tokens.content_mask, page.word >= 0)


def test_a_page_without_words_has_its_marks_and_a_long_one_is_cut(tokenizer: TextTokenizer) -> None:
    page = page_tokens([[], WORDS[0] * 20], tokenizer)
    assert page.tokens.lengths.tolist() == [2, 24]
    assert page.tokens.ids[0, :2].tolist() == page.tokens.ids[1, [0, 23]].tolist()


def test_paths_are_tags_and_places(tokenizer: TextTokenizer) -> None:
    page = element_tokens(NODES, tokenizer, depth=3)
    row, element = page.path[0], page.element[0]
    thanks, other = row[element == 1], row[element == 2]
    html, body, p = (TAG_NUMBERS[tag] for tag in ("html", "body", "p"))
    assert thanks.tolist() == [[[html, 1], [body, 1], [p, 2]]] * len(thanks)
    assert other[0].tolist() == [[html, 1], [body, 1], [TAG_COUNT - 1, 255]]
    assert not row[element < 0].any()
    assert element_tokens(NODES, tokenizer, depth=2).path[0][element == 1][0].tolist() == [[html, 1], [body, 1]]


def test_places_are_embedded_as_in_layoutlmv3() -> None:
    from transformers import LayoutLMv3Config
    from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder, LayoutLMv3TextEmbeddings

    sizes = {"hidden_size": 96, "coordinate_size": 16, "shape_size": 16, "max_2d_position_embeddings": 1001}
    config = LayoutLMv3Config(**sizes, num_hidden_layers=1, num_attention_heads=4)
    theirs, own = LayoutLMv3TextEmbeddings(config), LayoutEmbedding(96)
    for name, part in own.named_children():
        getattr(theirs, name).load_state_dict(part.state_dict())
    boxes = torch.randint(0, 500, (2, 7, 4))
    boxes[..., 2:] += boxes[..., :2]
    torch.testing.assert_close(own(boxes), theirs.calculate_spatial_position_embeddings(boxes))
    encoder = LayoutLMv3Encoder(config)
    distances = torch.arange(-400, 400)
    for buckets, furthest in ((32, 128), (64, 256)):
        expected = encoder.relative_position_bucket(distances, num_buckets=buckets, max_distance=furthest)
        assert torch.equal(relative_bucket(distances, buckets, furthest), expected)
    bias = SpatialBias(4)
    for name, part in bias.named_children():
        getattr(encoder, name).weight.data = part.weight.data.T
    place = torch.arange(7).expand(2, 7)
    with torch.no_grad():
        expected = encoder._cal_1d_pos_emb(place) + encoder._cal_2d_pos_emb(boxes)
        torch.testing.assert_close(bias(boxes), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_is_added_to_the_logits_of_attention(causal: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, causal)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    bias = torch.randn(2, 2, 5, 5)
    packing = Packing(mask, Packing.of(mask).indices, bias=bias)
    x = torch.randn(8, 8)
    query, key, value = packing.pad(attention.qkv(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(2, 3) / 2 + bias
    hidden = ~mask[:, None, None, :] | (torch.ones(5, 5).triu(1).bool() if causal else torch.zeros(5, 5).bool())
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    expected = attention.out(packing.pack((weights @ value).transpose(1, 2).flatten(2)))
    torch.testing.assert_close(attention(x, packing), expected)


def encoders(tokenizer: TextTokenizer) -> dict[str, tuple[Encoder, Any, Any]]:
    """An encoder of each kind, a batch of two pages, and the shorter one alone."""
    torch.manual_seed(0)
    pages = DocumentEncoderConfig(context_length=24).build(tokenizer.vocab_size)
    web = WebpageEncoderConfig(context_length=24).build(tokenizer.vocab_size)
    return {
        "document": (pages, page_tokens(WORDS, tokenizer), page_tokens(WORDS[1:], tokenizer)),
        "webpage": (web, element_tokens(NODES, tokenizer, 16), element_tokens(NODES[1:], tokenizer, 16)),
    }


@pytest.mark.parametrize("kind", ["document", "webpage"])
def test_padding_changes_nothing_and_gradients_reach_all(kind: str, tokenizer: TextTokenizer) -> None:
    encoder, both, shorter = encoders(tokenizer)[kind]
    tokens, packing, pooled = encoder(both)
    assert tokens.shape == (int(both.tokens.lengths.sum()), 64)
    torch.testing.assert_close(pooled[1:], encoder(shorter)[-1])
    torch.testing.assert_close(packing.pad(tokens)[1, : both.tokens.lengths[1]].mean(0), pooled[1])
    pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_where_words_stand_matters(tokenizer: TextTokenizer) -> None:
    encoder, both, _ = encoders(tokenizer)["document"]
    moved = page_tokens([[word._replace(box=(5, 5, 9, 9)) for word in page] for page in WORDS], tokenizer)
    assert not torch.allclose(encoder(both)[-1], encoder(moved)[-1], atol=1e-4)
    encoder.layout = nn.Identity()
    encoder.bias = None
    encoder.layout.forward = lambda boxes: torch.zeros(len(boxes), 64)
    torch.testing.assert_close(encoder(both)[-1], encoder(moved)[-1])
