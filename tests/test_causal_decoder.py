"""The causal decoder: BLIP's as transformers computes it, CoCa's halves, the same with and without a cache."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.models.causal_decoder import CausalDecoder, CausalDecoderConfig
from test_fusion_encoder import MARKS, copy_bert_block

END = 2
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2]).bool()
IMAGE_MASK = torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
COCA = {"depth": 4, "unimodal_depth": 2, "class_token": True}


def model(vocab_size: int = 20, **settings: object) -> CausalDecoder:
    torch.manual_seed(0)
    own = CausalDecoderConfig(vocab_size, 16, 16, num_heads=2, **settings).build(12)  # type: ignore[arg-type]
    for parameter in own.parameters():  # far from uniform, so that the likeliest token depends on what came before
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return own.eval()


def test_it_is_blips_decoder() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "encoder_hidden_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 10}
    settings = transformers.BlipTextConfig(**sizes, **MARKS, layer_norm_eps=1e-5, is_decoder=True, label_smoothing=0.1)
    theirs = BlipTextLMHeadModel(settings).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    config = CausalDecoderConfig(30, 10, 16, 2, 0, 2, norm="post", head="bert", label_smoothing=0.1)
    own = config.build(12).eval()
    embeddings, transform = theirs.bert.embeddings, theirs.cls.predictions.transform
    own.token_embedding.load_state_dict(embeddings.word_embeddings.state_dict())
    own.pos_embed.load_state_dict(embeddings.position_embeddings.state_dict())
    own.norm_pre.load_state_dict(embeddings.LayerNorm.state_dict())
    head = [*transform.dense.parameters(), *transform.LayerNorm.parameters()]
    ours = [*own.head.dense.parameters(), *own.head.norm.parameters()]
    for parameter, value in zip(ours, head, strict=True):
        parameter.data = value.detach()
    own.head.bias.data = theirs.cls.predictions.bias.detach()
    for block, layer in zip(own.blocks, theirs.bert.encoder.layer, strict=True):
        copy_bert_block(block, layer)
    ids, image = torch.randint(30, (2, 6)), torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = theirs(
            ids, encoder_hidden_states=image, labels=ids, is_decoder=True, use_cache=False, reduction="mean"
        )
        everything = torch.ones_like(ids, dtype=torch.bool)
        states = own(ids, everything, image)
        torch.testing.assert_close(own.logits(states), expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.lm_loss(states, ids, everything), expected.loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"norm": "post"}, {"norm": "pre"}, COCA], ids=["blip", "pre", "coca"])
def test_padding_and_the_future_change_nothing(settings: dict[str, object]) -> None:
    own = model(**settings)
    ids, image = torch.randint(3, 20, (2, 6)), torch.randn(2, 5, 12)
    states = own(ids, MASK, image, IMAGE_MASK)
    alone = own(ids[1:, :4], MASK[1:, :4], image[1:, :3])
    torch.testing.assert_close(states[1:, :4], alone, rtol=1e-4, atol=1e-5)
    shifted = F.pad(ids[1:, :4], (2, 0)), F.pad(MASK[1:, :4], (2, 0))  # padding before the text
    torch.testing.assert_close(own(*shifted, image[1:, :3])[:, 2:], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own(ids[:, :3], MASK[:, :3], image, IMAGE_MASK), states[:, :3], rtol=1e-4, atol=1e-5)
    expected = torch.stack(
        [
            F.cross_entropy(own.logits(states[row, place - 1]), ids[row, place])
            for row in range(2)
            for place in range(1, 6)
            if MASK[row, place]
        ]
    )
    torch.testing.assert_close(own.lm_loss(states, ids, MASK), expected.mean())
    answer = torch.arange(6) > 2
    torch.testing.assert_close(own.lm_loss(states, ids, MASK, answer.expand(2, -1)), expected[[2, 3, 4, 7]].mean())


def test_cocas_class_token_reads_the_whole_text_and_no_image() -> None:
    own = model(**COCA)
    ids, image = torch.randint(3, 20, (2, 6)), torch.randn(2, 5, 12)
    text = own.encode_text(ids, MASK)
    alone = own.encode_text(ids[1:, :4], MASK[1:, :4])
    torch.testing.assert_close(text.pooled[1:], alone.pooled, rtol=1e-4, atol=1e-5)
    for place in range(4):
        changed = ids.clone()
        changed[1, place] = 3 + (changed[1, place] - 2) % 17
        assert not torch.allclose(own.encode_text(changed, MASK).pooled[1], text.pooled[1], atol=1e-4)
    states = own.decode(text.tokens, MASK, image, IMAGE_MASK)  # one pass of the lower blocks for both losses
    torch.testing.assert_close(states, own(ids, MASK, image, IMAGE_MASK), rtol=1e-4, atol=1e-5)
    assert [block.cross_attention is not None for block in own.blocks] == [False, False, True, True]


@pytest.mark.parametrize("settings", [{"norm": "post", "head": "bert"}, COCA], ids=["blip", "coca"])
def test_a_cache_changes_nothing(settings: dict[str, object]) -> None:
    own = model(**settings)
    image = torch.randn(2, 5, 12)
    prompts = torch.tensor([[1, 7, 5], [0, 1, 9]])
    mask = prompts > 0
    written = own.generate_text(prompts, mask, image, IMAGE_MASK, END, Decoding(8))
    assert any(written)
    for row in range(2):
        so_far = prompts[row][mask[row]].tolist()
        start = len(so_far)
        while len(so_far) - start < 8:
            ids = torch.tensor([so_far])
            states = own(ids, torch.ones_like(ids, dtype=torch.bool), image[row][IMAGE_MASK[row]][None])
            token = int(own.logits(states[0, -1]).argmax())
            if token == END:
                break
            so_far.append(token)
        assert written[row] == so_far[start:]


def test_wide_beams_find_the_best_text_of_all() -> None:
    own = model(vocab_size=4)
    image, longest, penalty = torch.randn(1, 5, 12), 3, 0.7
    scores = {}
    for length in range(1, longest + 1):
        for text in itertools.product(range(4), repeat=length):
            if END in text[:-1] or (text[-1] != END and length < longest):
                continue
            ids = torch.tensor([[1, *text]])
            states = own(ids, torch.ones_like(ids, dtype=torch.bool), image)
            nats = F.cross_entropy(own.logits(states[0, :-1]), ids[0, 1:], reduction="sum")
            scores[text] = -nats.item() / length**penalty
    best = max(scores, key=lambda text: scores[text])
    decoding = Decoding(longest, num_beams=16, length_penalty=penalty)
    prompt = torch.tensor([[1]])
    found = own.generate_text(prompt, prompt > 0, image, None, END, decoding)
    assert found == [[token for token in best if token != END]]
    two = own.generate_text(
        prompt.expand(2, -1), prompt.expand(2, -1) > 0, image.expand(2, -1, -1), None, END, decoding
    )
    assert two == found * 2


def test_samples_follow_the_seed() -> None:
    own = model()
    prompt, image = torch.tensor([[1]]), torch.randn(1, 5, 12)

    def sampled(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return own.generate_text(prompt, prompt > 0, image, None, END, Decoding(10, temperature=1.0), generator)

    assert sampled(0) == sampled(0)
    assert len({tuple(sampled(seed)[0]) for seed in range(5)}) > 1


def test_what_cannot_be_is_refused() -> None:
    prompt = torch.tensor([[1]])
    with pytest.raises(UserError, match="do not fit into a context of 16"):
        model().generate_text(prompt, prompt > 0, torch.randn(1, 5, 12), None, END, Decoding(20))
    with pytest.raises(UserError, match="more than the depth"):
        CausalDecoderConfig(depth=2, unimodal_depth=3)
    with pytest.raises(UserError, match="set a unimodal_depth"):
        CausalDecoderConfig(class_token=True)
