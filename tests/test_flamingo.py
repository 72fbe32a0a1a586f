"""Flamingo: the frozen language model at the start, images only for the text behind them, the same with a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polymodal.data.sequence import TEXT, PackedSequences, Span, pack, pad_sequences
from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.errors import UserError
from polymodal.layers.decoding import Decoding
from polymodal.models.flamingo import Flamingo, FlamingoConfig, GatedDecoderBlock

END, PLACEHOLDER = 2, 3
IMAGE = Span("image", torch.tensor([PLACEHOLDER]), predicted=False)


def model(opened: bool = True, depth: int = 3, **settings: object) -> Flamingo:
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageEncoderConfig(width=16, depth=1))
    language_model = LanguageModel(LanguageModelConfig(width=24, depth=depth, num_heads=4, num_kv_heads=2), 30)
    torch.nn.init.normal_(language_model.embedding.weight)
    own = FlamingoConfig(4, 1, 2, **settings).build(encoder, language_model, END).eval()  # type: ignore[arg-type]
    if opened:
        for name, weight in own.named_parameters():
            if name.endswith("gate"):
                weight.data.fill_(1.0)
    return own


def text(*ids: int) -> Span:
    return Span(TEXT, torch.tensor(ids))


def documents() -> list[list[Span]]:
    return [
        [text(1, 5), IMAGE, text(6, 7), IMAGE, text(8, 9, END)],
        [text(1, 10, 11, 14, 15, END)],
        [text(1), IMAGE, text(12, 13, END)],
    ]


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(own: Flamingo, sequences: PackedSequences, pixels: Tensor) -> Tensor:
    return own.language_model.logits(own.hidden_states({"sequences": sequences, "image": pixels}))


def test_it_starts_as_its_language_model() -> None:
    own = model(opened=False)
    sequences = pad_sequences(documents())
    alone = LanguageModel(LanguageModelConfig(width=24, depth=3, num_heads=4, num_kv_heads=2), 30).eval()
    state = {name.replace(".block.", "."): value for name, value in own.language_model.state_dict().items()}
    alone.load_state_dict({name: value for name, value in state.items() if ".gated." not in name})
    states = alone(alone.embedding(sequences.ids), sequences.position, sequences.document)
    assert torch.equal(logits(own, sequences, images()), alone.logits(states))
    own.losses({"sequences": sequences, "image": images()})["lm"].backward()
    trained = {name for name, weight in own.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert trained
    assert all(name.endswith("gate") for name in trained)  # the rest learns once the gates are open
    model_open = model()
    model_open.losses({"sequences": sequences, "image": images()})["lm"].backward()
    trained = {name for name, weight in model_open.named_parameters() if weight.grad is not None}
    assert all(".gated." in name or name.startswith("resampler") for name in trained)
    assert "resampler.latents" in trained


@pytest.mark.parametrize("attend", ["last", "all"])
def test_an_image_changes_only_the_text_behind_it(attend: str) -> None:
    own = model(depth=1, attend=attend)
    sequences = pad_sequences(documents())
    before = logits(own, sequences, images())
    changed = []
    for number in range(3):
        others = images()
        others[number] += 1
        changed.append((logits(own, sequences, others) != before).any(2) & (sequences.document > 0))
    assert changed[0][0].nonzero().flatten().tolist() == list(range(2, 9))  # self-attention passes it on
    assert changed[1][0].nonzero().flatten().tolist() == list(range(5, 9))
    assert changed[2][2].nonzero().flatten().tolist() == list(range(1, 5))
    assert not changed[0][1:].any()
    assert not changed[2][:2].any()


def test_packing_changes_nothing() -> None:
    own = model()
    alone = [
        own.token_losses({"sequences": pad_sequences([document]), "image": images()[which]}).nats
        for document, which in zip(documents(), (slice(0, 2), slice(0), slice(2, 3)), strict=True)
    ]
    packed = pack(documents(), 15)
    assert len(packed) == 2
    order = {9: slice(0, 2), 5: slice(2, 3)}  # by the length of the document
    pixels = torch.cat(
        [
            images()[order[length]]
            for row in range(2)
            for number in range(1, int(packed.document[row].max()) + 1)
            if (length := int((packed.document[row] == number).sum())) in order
        ]
    )
    found = own.token_losses({"sequences": packed, "image": pixels})
    for sample in found.samples.unique():
        nats = found.nats[found.samples == sample]
        expected = next(one for one in alone if len(one) == len(nats))
        torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoding", [Decoding(6), Decoding(6, num_beams=2)], ids=["greedy", "beams"])
def test_a_cache_changes_nothing(decoding: Decoding) -> None:
    own = model()
    prompts = [[text(1, 5), IMAGE, text(6)], [text(1, 7, 8)], [text(1), IMAGE, text(6), IMAGE]]
    batch = {"prompts": pad_sequences(prompts, pad_left=True), "image": images()}
    written = own.generate_text(batch, decoding)
    assert any(written)
    for prompt, which, found in zip(prompts, (slice(0, 1), slice(0), slice(1, 3)), written, strict=True):
        single = {"prompts": pad_sequences([prompt]), "image": images()[which]}
        assert own.generate_text(single, decoding) == [found]
        if decoding.num_beams == 1:
            so_far: list[int] = []
            while len(so_far) < 6:
                sequences = pad_sequences([[*prompt, text(*so_far)] if so_far else prompt])
                token = int(logits(own, sequences, images()[which])[0, -1].argmax())
                if token == END:
                    break
                so_far.append(token)
            assert found == so_far


def test_gated_blocks_stand_where_the_configuration_says() -> None:
    def gated(**settings: object) -> list[int]:
        blocks = model(depth=6, **settings).language_model.decoder.blocks
        return [index for index, block in enumerate(blocks) if isinstance(block, GatedDecoderBlock)]

    assert gated() == [0, 1, 2, 3, 4, 5]
    assert gated(cross_attn_every_n_layers=4) == [0, 4]
    assert gated(cross_attn_every_n_layers=2, unimodal_depth=3) == [3, 5]  # COSMO


def test_videos_are_resampled_as_a_whole_and_images_are_counted() -> None:
    own = model()
    assert own.encode_media(torch.randn(2, 3, 3, 32, 32)).shape == (2, 4, 16)
    with pytest.raises(UserError, match="2 images do not fit 3 placeholders"):
        own.losses({"sequences": pad_sequences(documents()), "image": images(2)})
