"""Speech and text: Conformer, shared encoder, masks, contrastive and CTC losses, quantizer, error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from polymodal.data.masks import mask_time_spans
from polymodal.encoders.speech_text import SpeechTextEncoder, SpeechTextEncoderConfig, num_output_frames
from polymodal.evaluation.tasks.transcription import error_rate
from polymodal.layers.conformer import Conformer
from polymodal.layers.quantize import GumbelQuantizer
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import TextTokenizer, Tokens
from polymodal.objectives.ctc import ctc_greedy_decode, ctc_loss
from polymodal.objectives.wav2vec2_contrastive import wav2vec2_contrastive_loss
from polymodal.rng import ExampleRNG

SMALL = SpeechTextEncoderConfig(num_mel_bins=40, width=32, speech_depth=1, shared_depth=1, num_heads=2, vocab_size=60)


def test_padding_has_no_influence_on_a_conformer() -> None:
    torch.manual_seed(0)
    conformer = Conformer(16, 2, 2, 5).eval()
    x = torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    whole = conformer(x, mask)
    assert torch.allclose(conformer(x[1:, :5], mask[1:, :5])[0], whole[1, :5], atol=1e-5)
    x[1, 5:] = 99.0
    assert torch.allclose(conformer(x, mask)[1, :5], whole[1, :5], atol=1e-5)
    assert not torch.allclose(conformer(x[:, :8], mask[:, :8])[0], whole[0, :8], atol=1e-3)


def test_a_conformer_sees_order() -> None:
    torch.manual_seed(0)
    conformer = Conformer(16, 1, 2, 1).eval()  # without a convolution that would tell neighbours
    x, mask = torch.randn(1, 6, 16), torch.ones(1, 6, dtype=torch.bool)
    turned = conformer(x.flip(1), mask).flip(1)
    assert not torch.allclose(turned, conformer(x, mask), atol=1e-3)


def test_padded_speech_is_heard_as_it_is_alone() -> None:
    """Frames behind the end reach neither convolutions nor the codes' features."""
    encoder = SpeechTextEncoder(SMALL, 20).eval()
    for frames in (37, 38, 39, 40):
        long, short = torch.randn(61, 40), torch.randn(frames, 40)
        both = Padded(torch.stack([long, F.pad(short, (0, 0, 0, 61 - frames), value=50.0)]), torch.tensor([61, frames]))
        alone = encoder.encode_speech(Padded(short[None], torch.tensor([frames])))
        count = int(num_output_frames(torch.tensor([frames])))
        heard = encoder.encode_speech(both)
        assert heard.lengths.tolist() == [16, count]
        for part in ("features", "contrastive", "multimodal"):
            assert torch.allclose(getattr(heard, part)[1, :count], getattr(alone, part)[0], atol=1e-5), (frames, part)


def test_both_in_one_sequence_are_as_if_nothing_was_padded() -> None:
    torch.manual_seed(0)
    encoder = SpeechTextEncoder(SMALL, 20).eval()
    speech = Padded(torch.randn(2, 7, 32), torch.tensor([7, 4]))
    text = encoder.embed_text(Tokens(torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([4, 3])))
    said, read = encoder.encode_pair(speech, text)
    assert said.shape == (11, 32)
    assert read.shape == (7, 32)
    alone = torch.cat([speech.values[1:, :4], text.values[1:, :3]], dim=1)
    whole = encoder.multimodal_block(alone, torch.ones(1, 7, dtype=torch.bool))[0]
    assert torch.allclose(said[7:], whole[:4], atol=1e-5)
    assert torch.allclose(read[4:], whole[4:], atol=1e-5)


def test_hidden_stretches_hide_about_half_and_something_of_everything() -> None:
    hidden = mask_time_spans([400] * 50, 0.065, 10, ExampleRNG.of(0, 0, 50))
    assert float(hidden.float().mean()) == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.03)
    short = mask_time_spans([3, 1, 40], 0.0, 10, ExampleRNG.of(1, 0, 3))
    assert short.any(1).all()
    assert not short[0, 3:].any()
    assert not short[1, 1:].any()


def test_characters_are_tokens_and_come_back() -> None:
    tokenizer = TextTokenizer.characters(["Abc मुर", "a ж"], 60, 12)
    tokens = tokenizer(["aж म", "", "ab?"])
    assert tokens.lengths.tolist() == [6, 2, 5]
    assert tokenizer.decode(tokens) == ["aж म", "", "ab"], "what is not known is left out"
    few = TextTokenizer.characters(["aab"], 5, 12)
    assert few.vocab_size == 5
    assert few.decode(few(["ab"])) == ["a"]


def test_the_contrast_by_hand() -> None:
    """Two places of one sequence have each other for the only distractor; a third sequence is alone."""
    torch.manual_seed(0)
    context, targets = torch.randn(3, 4), torch.randn(3, 4)
    found = wav2vec2_contrastive_loss(context, targets, torch.tensor([2, 1]), num_negatives=5)
    near = F.cosine_similarity(context[:, None], targets[None], dim=2) / 0.1
    by_hand = [math.log(1 + 5 * math.exp(near[i, 1 - i] - near[i, i])) for i in (0, 1)] + [0.0]
    assert float(found) == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert float(wav2vec2_contrastive_loss(context[:0], targets[:0], torch.tensor([0, 0]))) == 0.0
    same = targets[:1].expand(3, 4)
    assert float(wav2vec2_contrastive_loss(context, same, torch.tensor([3]))) == pytest.approx(0.0), (
        "equals are no distractors"
    )


def test_distractors_are_of_the_same_sequence() -> None:
    context, targets = torch.randn(40, 4), torch.randn(40, 4).requires_grad_()
    wav2vec2_contrastive_loss(context[:10], targets[:10], torch.tensor([4, 6])).backward()
    assert torch.count_nonzero(targets.grad[10:]) == 0
    assert torch.count_nonzero(targets.grad[:10]) > 0


def test_the_quantizer_passes_gradients_cools_and_counts_its_codes() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(8, 2, 6, 10, temperature_decay=0.5)
    x = torch.randn(50, 8, requires_grad=True)
    chosen = quantizer(x)
    assert chosen.vectors.shape == (50, 10)
    assert chosen.codes.shape == (50, 2)
    chosen.vectors.sum().backward()
    assert torch.count_nonzero(x.grad) > 0
    assert float(quantizer.temperature) == 2.0, "one for all micro-batches of a step"
    quantizer.after_step(0.0)
    assert float(quantizer.temperature) == 1.0
    for _ in range(3):
        quantizer.after_step(0.0)
    assert float(quantizer.temperature) == 0.5, "not colder than that"
    quantizer.eval()
    one, two = quantizer(x), quantizer(x)
    assert torch.equal(one.vectors, two.vectors)
    by_code = quantizer.codebook[0, one.codes[:, 0]]
    assert torch.allclose(one.vectors[:, :5], by_code)
    assert 0 < one.diversity.item() < 1
    quantizer.logits.weight.data.zero_()
    assert quantizer(x).diversity.item() == pytest.approx(0, abs=1e-5), "all alike often"
    quantizer.logits.bias.data[0] = quantizer.logits.bias.data[6] = 50.0
    assert quantizer(x).diversity.item() == pytest.approx(1 - 1 / 6, abs=1e-4), "one code each"
    assert quantizer(x[:0]).diversity.item() == 0
    x.grad = None
    quantizer.logits.bias.data[0] = 500.0  # so sure that the shares of all others are 0
    quantizer(x).diversity.backward()
    assert torch.isfinite(quantizer.logits.bias.grad).all()


def test_ctc_sums_over_all_ways_to_say_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 3)
    text = Tokens(torch.tensor([[1, 1, 2, 2]]), torch.tensor([4]))  # a mark, "1", "2", a mark
    shares = logits[0].softmax(1)
    total = 0.0
    for way in itertools.product(range(3), repeat=4):
        said = [number for number, _ in itertools.groupby(way) if number]
        if said == [1, 2]:
            total += float(torch.stack([shares[place, number] for place, number in enumerate(way)]).prod())
    found = ctc_loss(logits, torch.tensor([4]), text)
    assert float(found) == pytest.approx(-math.log(total) / 2, abs=1e-5)
    assert float(ctc_loss(logits[:, :1], torch.tensor([1]), text)) == 0.0, "too long for its speech"
    likely = F.one_hot(torch.tensor([1, 1, 0, 1, 2, 2, 0]), 3).float()
    assert ctc_greedy_decode(likely) == [1, 1, 2]


def test_error_rates_by_hand() -> None:
    score = error_rate("x", ["abd", "", "aaaa"], ["abc", "ab", "a"])
    assert score.value == pytest.approx((1 + 2 + 3) / (3 + 2 + 1))
    assert not score.higher_is_better
    assert error_rate("x", [["a", "b"]], [["a", "c"]]).value == 0.5
    assert error_rate("x", [""], ["abc"]).value == error_rate("x", [""], ["abc"]).chance == 1.0


def test_the_mean_leaves_padding_out() -> None:
    sequence = Padded(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([2]))
    assert sequence.mean().item() == 2.0
