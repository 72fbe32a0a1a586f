"""The decoder is Llama's: equal to transformers with the same weights, alone, packed, cached, and when it writes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from polymodal.encoders.language_model import LanguageModel, LanguageModelConfig
from polymodal.encoders.pretrained_language_model import PretrainedDecoder, read_language_model
from polymodal.errors import UserError
from polymodal.layers.decoder import ModalityExperts, SwiGLU
from polymodal.layers.decoding import Decoding, sample, top_p_filter
from polymodal.layers.positions import rotary_angles, rotate
from polymodal.objectives.autoregressive import next_token_losses, prediction_positions, segment_sum
from tiny_checkpoints import save

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "bos_token_id": 1}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 2}
LIKE_LLAMA = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, rope_theta=5000.0),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
}


def pretrained(kind: str, folder: Path) -> tuple[Any, PretrainedDecoder]:
    """A model of transformers, and ours with its weights."""
    model = transformers.AutoModelForCausalLM.from_config(LIKE_LLAMA[kind]())
    save(model, folder)
    own = read_language_model(str(folder)).build(SIZES["vocab_size"]).eval()
    own.load_pretrained()
    return model, own


def own_model(experts: tuple[str, ...] = ("text",), vocabulary: int = 40) -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(width=32, depth=2, num_heads=4, num_kv_heads=2, mlp_dim=48)
    return LanguageModel(config, vocabulary, experts).eval()


def alone(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and documents of sequences of their own."""
    return torch.arange(ids.shape[1]).expand_as(ids), torch.ones_like(ids)


@pytest.mark.parametrize("kind", LIKE_LLAMA)
def test_pretrained_decoders_give_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model, own = pretrained(kind, tmp_path)
    assert type(own) is PretrainedDecoder
    ids = torch.randint(3, 61, (2, 9))
    with torch.no_grad():
        states = own(own.embedding(ids), *alone(ids))
        torch.testing.assert_close(own.logits(states), model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_transformers_writes(beams: int, tmp_path: Path) -> None:
    """Prompts of different length stand at the right, as transformers wants them, too."""
    model, own = pretrained("llama", tmp_path)
    ids = torch.randint(3, 61, (3, 7))
    document = torch.ones_like(ids)
    document[0, :3] = 0
    document[2, :5] = 0
    position = (document.cumsum(1) - 1).clamp(min=0)
    named = {"max_new_tokens": 12, "do_sample": False, "num_beams": beams, "pad_token_id": 2, "eos_token_id": 2}
    expected = model.generate(ids, attention_mask=document, **named)[:, 7:].tolist()
    decoding = Decoding(max_new_tokens=12, num_beams=beams)
    found = own.generate(own.embedding(ids), position, document, None, 2, decoding)
    assert found == [row[: row.index(2)] if 2 in row else row for row in expected]
    single = own.generate(own.embedding(ids[2:, 5:]), *alone(ids[2:, 5:]), None, 2, decoding)
    assert single[0] == found[2], "padding changes nothing"


def likelihood(model: LanguageModel, prompt: torch.Tensor, written: list[int], longest: int = 12) -> float:
    """log p of a continuation with its end mark, by its length."""
    ended = [*written, 2][:longest]
    ids = torch.cat([prompt, torch.tensor([ended])], dim=1)
    with torch.no_grad():
        logits = model.logits(model(model.embedding(ids), *alone(ids)))
    each = logits[0, prompt.shape[1] - 1 : -1].log_softmax(1).gather(1, torch.tensor(ended)[:, None])
    return float(each.sum()) / len(ended)


def test_enough_beams_find_the_likeliest_text_there_is() -> None:
    model = own_model(vocabulary=5)
    with torch.no_grad():
        model.embedding.weight.mul_(60)  # or all texts are nearly as likely
    prompt = torch.tensor([[1, 3]])
    texts = [list(t) for n in range(4) for t in itertools.product([0, 1, 3, 4], repeat=n)]
    best = max(texts, key=lambda text: likelihood(model, prompt, text, 3))
    written = model.generate(
        model.embedding(prompt), *alone(prompt), None, 2, Decoding(max_new_tokens=3, num_beams=125)
    )
    assert written == [best]


def test_keeping_what_was_read_changes_nothing() -> None:
    model = own_model()
    ids = torch.randint(3, 40, (2, 9))
    position, document = alone(ids)
    with torch.no_grad():
        whole = model(model.embedding(ids), position, document)
        cache = model.decoder.cache(2, 9)
        parts = [
            model(model.embedding(ids[:, part]), position[:, part], document[:, part], None, cache)
            for part in (slice(0, 4), slice(4, 7), slice(7, 8), slice(8, 9))  # also several at once after the first
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 9


def test_documents_of_a_row_do_not_see_each_other() -> None:
    model = own_model()
    one, other = torch.randint(3, 40, (1, 4)), torch.randint(3, 40, (1, 6))
    row = torch.cat([one, other, torch.zeros(1, 2, dtype=torch.long)], dim=1)
    document = torch.tensor([[1] * 4 + [2] * 6 + [0] * 2])
    position = torch.tensor([[*range(4), *range(6), 0, 0]])
    with torch.no_grad():
        together = model(model.embedding(row), position, document)
        torch.testing.assert_close(together[:, :4], model(model.embedding(one), *alone(one)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            together[:, 4:10], model(model.embedding(other), *alone(other)), atol=1e-5, rtol=1e-5
        )
    assert torch.isfinite(together).all()


def test_what_comes_later_is_not_seen() -> None:
    model = own_model()
    ids = torch.randint(3, 40, (1, 8))
    vectors = model.embedding(ids).detach().requires_grad_()
    model(vectors, *alone(ids))[0, 4].sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad[0, 5:] == 0).all()
    assert (vectors.grad[0, :5].abs().sum(1) > 0).all()


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_rotated_vectors_compare_by_distance_alone(one: int, other: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(one)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)

    def product(first: int, second: int) -> torch.Tensor:
        turned = [
            rotate(x, rotary_angles(torch.tensor([[place]]), 16, 10_000.0, x))
            for x, place in ((query, first), (key, second))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(one, other), product(one + shift, other + shift), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(product(one, one), (query * key).sum(), atol=1e-4, rtol=1e-4)


def test_experts_are_what_both_mlps_and_a_mask_would_be() -> None:
    torch.manual_seed(0)
    text, image = SwiGLU(16, 24), SwiGLU(16, 24)
    experts = ModalityExperts({"text": text, "image": image})
    x = torch.randn(2, 5, 16, requires_grad=True)
    imaged = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    routes = [(~imaged).flatten().nonzero().squeeze(1), imaged.flatten().nonzero().squeeze(1)]
    mask = imaged[..., None].float()
    torch.testing.assert_close(experts(x, routes), (1 - mask) * text(x) + mask * image(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(experts(x), text(x))
    experts(x, routes)[imaged].sum().backward()
    assert all((parameter.grad == 0).all() for parameter in text.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in image.parameters())
    assert x.grad is not None
    assert (x.grad[~imaged] == 0).all()


def test_an_expert_without_a_token_has_no_say_but_a_gradient() -> None:
    """Processes that train together wait for a gradient of every parameter."""
    experts = ModalityExperts({"text": SwiGLU(8, 8), "image": SwiGLU(8, 8)})
    x = torch.randn(1, 3, 8)
    routes = [torch.arange(3), torch.arange(0)]
    found = experts(x, routes)
    torch.testing.assert_close(found, experts(x))
    found.sum().backward()
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in experts.image.parameters())


def test_copied_experts_do_not_share_storage() -> None:
    model = own_model(("text", "image"))
    model.copy_experts("text")
    experts = model.decoder.blocks[0].feed_forward
    assert torch.equal(experts.text.down.weight, experts.image.down.weight)
    with torch.no_grad():
        experts.image.down.weight.zero_()
    assert experts.text.down.weight.abs().sum() > 0


def test_a_loss_asks_for_answers_only_and_for_no_first_token() -> None:
    document = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    predicted = torch.tensor([[1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1]], dtype=torch.bool)
    rows, places = prediction_positions(document, predicted)
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == [(0, 2), (0, 4), (1, 2), (1, 3), (1, 5)]
    logits, tokens = torch.randn(5, 7), torch.randint(7, (5,))
    losses = next_token_losses(logits, tokens)
    torch.testing.assert_close(losses.mean(), F.cross_entropy(logits, tokens))
    sums = segment_sum(losses, rows, 3)
    torch.testing.assert_close(sums, torch.stack([losses[:2].sum(), losses[2:].sum(), torch.tensor(0.0)]))


@given(st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_nucleus_is_the_smallest_set_of_that_mass(mass: float) -> None:
    probabilities = torch.randn(3, 11, generator=torch.Generator().manual_seed(0)).softmax(1)
    kept = top_p_filter(probabilities, mass)
    for row, original in zip(kept, probabilities, strict=True):
        inside = row > 0
        assert torch.equal(row[inside], original[inside])
        assert inside.sum() == 1 or row.sum() - row[inside].min() < mass + 1e-6
        assert row.sum() >= mass - 1e-6
        if not inside.all():
            assert original[~inside].max() <= row[inside].min()


def test_words_are_drawn_as_often_as_their_probability_and_again_from_a_seed() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)

    def drawn(decoding: Decoding) -> torch.Tensor:
        return sample(logits, decoding, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000

    torch.testing.assert_close(drawn(Decoding(temperature=1)), torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)
    torch.testing.assert_close(
        drawn(Decoding(temperature=1, top_p=0.6)), torch.tensor([0, 0, 3 / 7, 4 / 7]), atol=0.02, rtol=0
    )
    assert drawn(Decoding()).tolist() == [0, 0, 0, 1]
    assert torch.equal(drawn(Decoding(temperature=0.5)), drawn(Decoding(temperature=0.5)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"num_beams": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"num_beams": 2, "temperature": 1.0},
    ],
)
def test_impossible_decoding_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is at least|is above|does not sample"):
        Decoding(**wrong)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(LIKE_LLAMA["llama"]())
    save(model, tmp_path)
    own = read_language_model(str(tmp_path)).build(61)
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up" not in name}
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        own.load_pretrained()


def test_all_experts_begin_as_the_pretrained_mlp(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(LIKE_LLAMA["qwen2"]())
    save(model, tmp_path)
    own = read_language_model(str(tmp_path)).build(61, ("text", "image")).eval()
    own.load_pretrained()
    ids = torch.randint(3, 61, (1, 6))
    routes = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 4])]
    with torch.no_grad():
        states = own(own.embedding(ids), *alone(ids), routes)
        torch.testing.assert_close(own.logits(states), model(ids).logits, atol=1e-4, rtol=1e-4)
    assert isinstance(own.decoder.blocks[0].feed_forward, nn.Module)
