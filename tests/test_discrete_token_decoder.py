"""The discrete-token decoder: one vocabulary, losses by modality, and generation that keeps to a modality."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polymodal.data.sequence import TEXT, Span, pack, pad_sequences
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.modalities.image import patchify
from polymodal.models.discrete_token_decoder import DiscreteTokenDecoder, DiscreteTokenDecoderConfig
from polymodal.models.joint_vocabulary import CodeFormat, JointVocabulary

END, BEGIN_IMAGE, END_IMAGE, BEGIN_SPEECH, END_SPEECH = 2, 3, 4, 5, 6
MARKS = {BEGIN_IMAGE, END_IMAGE, BEGIN_SPEECH, END_SPEECH}
SIZES = {TEXT: 12, "image": 10, "speech": 5}
FORMATS = {"image": CodeFormat(BEGIN_IMAGE, END_IMAGE, 4), "speech": CodeFormat(BEGIN_SPEECH, END_SPEECH, 2)}


def model(experts: tuple[str, ...] = (), **settings: float) -> DiscreteTokenDecoder:
    torch.manual_seed(0)
    vocabulary = JointVocabulary(SIZES)
    config = LanguageModelConfig(width=24, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=32)
    language_model = LanguageModel(config, vocabulary.total, (TEXT, *experts))
    torch.nn.init.normal_(language_model.embedding.weight)
    tokenizer = ImageTokenizerConfig(10, 4, 8).build(8)  # 16 px in cells of 8: four codes
    options = DiscreteTokenDecoderConfig(**settings)
    return DiscreteTokenDecoder(language_model, vocabulary, {"image": tokenizer}, FORMATS, END, options, experts).eval()


def text(*ids: int) -> Span:
    return Span(TEXT, torch.tensor(ids))


def image(seed: int) -> Tensor:
    return torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))


def cells(seed: int) -> Span:
    return Span("image", patchify(image(seed)[None], 8)[0])


def documents() -> list[list[Span]]:
    return [
        [text(1, 8, BEGIN_IMAGE), cells(0), text(END_IMAGE, 9, END)],
        [text(1, BEGIN_SPEECH), Span("speech", torch.tensor([4, 0])), text(END_SPEECH, END)],
        [text(1, 10, 11, END)],
    ]


def plain_ids(own: DiscreteTokenDecoder) -> list[list[int]]:
    codes = own.tokenizer("image").encode(image(0)[None])[0].tolist()
    return [
        [1, 8, BEGIN_IMAGE, *(12 + code for code in codes), END_IMAGE, 9, END],
        [1, BEGIN_SPEECH, 22 + 4, 22 + 0, END_SPEECH, END],
        [1, 10, 11, END],
    ]


def next_logits(own: DiscreteTokenDecoder, ids: list[int]) -> Tensor:
    """By the language model alone, without a cache."""
    row = torch.tensor([ids])
    states = own._states(row, torch.arange(row.shape[1])[None], torch.ones_like(row))
    return own.language_model.logits(states[0])


def test_every_modality_has_its_own_entries() -> None:
    vocabulary = JointVocabulary(SIZES)
    assert vocabulary.total == 27
    seen: list[int] = []
    for index, (name, size) in enumerate(SIZES.items()):
        codes = torch.arange(size)
        ids = vocabulary.encode(name, codes)
        assert torch.equal(vocabulary.decode(name, ids), codes)
        assert vocabulary.modality_of(ids).unique().tolist() == [index]
        assert list(range(27))[vocabulary.slice_of(name)] == ids.tolist()
        seen += ids.tolist()
    assert seen == list(range(27))
    with pytest.raises(UserError, match="begins with the entries of text"):
        JointVocabulary({"image": 3, TEXT: 4})


def test_features_and_codes_become_entries() -> None:
    own = model()
    sequences = pad_sequences(documents())
    ids = own.token_ids(sequences)
    for row, expected in enumerate(plain_ids(own)):
        assert ids[row, : len(expected)].tolist() == expected


@pytest.mark.parametrize("experts", [(), ("image",)])
def test_losses_of_modalities_add_up_to_the_mean_over_tokens(experts: tuple[str, ...]) -> None:
    own = model(experts, z_loss=0.01)
    nats: dict[str, list[Tensor]] = {name: [] for name in SIZES}
    log_z = []
    for ids in plain_ids(own):
        logits = next_logits(own, ids)
        for place, token in enumerate(ids[1:]):
            name = TEXT if token < 12 else "image" if token < 22 else "speech"
            nats[name].append(F.cross_entropy(logits[place], torch.tensor(token)))
            log_z.append(logits[place].exp().sum().log())
    for sequences in (pad_sequences(documents()), pack(documents(), 20)):
        losses = own.losses({"sequences": sequences})
        for name, expected in nats.items():
            torch.testing.assert_close(losses[name], torch.stack(expected).sum() / len(log_z), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses["z_loss"], 0.01 * torch.stack(log_z).square().mean(), rtol=1e-4, atol=1e-6)
    sums = own.token_nll({"sequences": pad_sequences(documents())})
    assert {name: count.tolist() for name, (_, count) in sums.items()} == {
        TEXT: [5, 3, 3],
        "image": [4, 0, 0],
        "speech": [0, 2, 0],
        "all": [9, 5, 3],
    }
    torch.testing.assert_close(sums["all"][0].sum(), sum(map(sum, nats.values())), rtol=1e-4, atol=1e-4)


def test_tokenizers_learn_by_their_own_losses_only() -> None:
    own = model()
    losses = own.tokenizer_losses({"image": torch.stack([image(0), image(1)])})
    assert set(losses) == {"image_pixels", "image_codebook", "image_commitment"}
    own.losses({"sequences": pad_sequences(documents())})["image"].backward()
    assert all(weight.grad is None for weight in own.tokenizer("image").parameters())
    assert own.language_model.embedding.weight.grad is not None


@pytest.mark.parametrize("experts", [(), ("image", "speech")])
def test_codes_are_the_likeliest_of_their_modality(experts: tuple[str, ...]) -> None:
    own = model(experts)
    prompts = [[text(1, 8, BEGIN_IMAGE)], [text(1, 8, 9, 10, BEGIN_IMAGE)]]
    batch = {"prompts": pad_sequences(prompts, pad_left=True)}
    codes = own.generate_codes(batch, "image", Decoding())
    for row, prompt in enumerate(([1, 8, BEGIN_IMAGE], [1, 8, 9, 10, BEGIN_IMAGE])):
        ids = list(prompt)
        for _ in range(4):
            ids.append(12 + int(next_logits(own, ids)[-1, 12:22].argmax()))
        assert codes[row].tolist() == [token - 12 for token in ids[len(prompt) :]]
    assert own.generate_items(batch, "image", Decoding()).shape == (2, 3, 16, 16)


def test_guidance_goes_from_unconditional_to_conditional_and_beyond() -> None:
    prompts = pad_sequences([[text(1, 8, BEGIN_IMAGE)]], pad_left=True)
    without = pad_sequences([[text(1, BEGIN_IMAGE)]], pad_left=True)
    batch = {"prompts": prompts, "unconditional_prompts": without}
    of = {scale: model(cfg_scale=scale).generate_codes(batch, "image", Decoding()) for scale in (0.0, 1.0, 3.0)}
    assert torch.equal(of[0.0], model().generate_codes({"prompts": without}, "image", Decoding()))
    assert torch.equal(of[1.0], model().generate_codes({"prompts": prompts}, "image", Decoding()))
    own, conditional, unconditional = model(), [1, 8, BEGIN_IMAGE], [1, BEGIN_IMAGE]
    for code in of[3.0][0].tolist():
        c, u = next_logits(own, conditional)[-1, 12:22], next_logits(own, unconditional)[-1, 12:22]
        assert int((u + 3.0 * (c - u)).argmax()) == code
        conditional, unconditional = [*conditional, 12 + code], [*unconditional, 12 + code]
    with pytest.raises(UserError, match="without their condition"):
        model(cfg_scale=2.0).generate_codes({"prompts": prompts}, "image", Decoding())


def test_text_has_no_codes_and_an_image_may_come_before_it() -> None:
    own = model()
    prompts = pad_sequences([[text(1, BEGIN_IMAGE), cells(3), text(END_IMAGE)], [text(1, 7)]], pad_left=True)
    for decoding in (Decoding(12), Decoding(12, temperature=3.0), Decoding(6, num_beams=3)):
        for row in own.generate_text({"prompts": prompts}, decoding, torch.Generator().manual_seed(0)):
            assert all(token < 12 for token in row)
            assert not MARKS & set(row)
    ids, possible = [1, 7], [token for token in range(12) if token not in MARKS]
    while len(ids) < 14:
        logits = next_logits(own, ids)[-1]
        token = max(possible, key=lambda token: logits[token].item())
        if token == END:
            break
        ids.append(token)
    assert own.generate_text({"prompts": prompts}, Decoding(12))[1] == ids[2:]


def test_interleaved_items_are_whole() -> None:
    own = model()
    prompts = pad_sequences([[text(1)]] * 8, pad_left=True)
    generator = torch.Generator().manual_seed(1)
    rows = own.generate_interleaved({"prompts": prompts}, Decoding(16, temperature=4.0), generator)
    counts = {"image": 4, "speech": 2}
    found = set()
    for row in rows:
        assert sum(len(ids) + 2 * (name != TEXT) for name, ids in row) <= 16
        for name, ids in row:
            found.add(name)
            assert all(0 <= token < SIZES[name] for token in ids)
            if name != TEXT:
                assert len(ids) == counts[name]
            else:
                assert not ({END} | MARKS) & set(ids)
    assert found == set(SIZES)
    assert all(before[0] != after[0] or before[0] != TEXT for row in rows for before, after in itertools.pairwise(row))
    with pytest.raises(UserError, match="Beam search"):
        own.generate_interleaved({"prompts": prompts}, Decoding(4, num_beams=2))


def test_what_is_missing_is_refused() -> None:
    own = model()
    with pytest.raises(UserError, match="no tokenizer of speech"):
        own.tokenizer("speech")
    with pytest.raises(UserError, match="codes of image have no format"):
        DiscreteTokenDecoder(own.language_model, own.vocabulary, {}, {}, END)
