"""FDT: the official code's weights, logits, loss and gradients; votes in plain loops; tables and temperature."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.modalities.padding import Padded, mask_of
from polymodal.recipes.dual_encoders import fdt

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/fdt.npz").items()}
PARTS = {"image_projection": "img_query_model.q_map", "text_projection": "txt_query_model.q_map"}


class Features(nn.Module):
    """An encoder whose output is given."""

    def __init__(self, tokens: Tensor | Padded):
        super().__init__()
        self.tokens = tokens

    def forward(self, value: Tensor) -> tuple[Tensor | Padded, Tensor]:
        values = self.tokens.values if isinstance(self.tokens, Padded) else self.tokens
        return self.tokens, values.mean(1)


def official(**options: str) -> fdt.FDT:
    """Ours, with the weights and the encoders' outputs of the official code."""
    recipe = dataclasses.replace(
        fdt.Recipe.tiny(), num_discrete_tokens=24, embed_dim=8, temperature=2.0, padding_votes="zero", **options
    )
    text = dataclasses.replace(recipe.text, context_length=7)
    model = fdt.FDT(dataclasses.replace(recipe, text=text), 300)
    for name, source in PARTS.items():
        layer = fdt.query_map(GOLDEN["patches" if "image" in name else "words"].shape[-1], 8, 8)
        layer.load_state_dict({key: GOLDEN[f"weight/{source}.{key}"] for key in layer.state_dict()})
        setattr(model, name, layer)
    model.image_encoder = Features(GOLDEN["patches"])
    model.text_encoder = Features(Padded(GOLDEN["words"], GOLDEN["lengths"]))
    model.table.data.copy_(GOLDEN["weight/space_dict"])
    model.logit_scale.logit_scale.data.copy_(GOLDEN["weight/logit_scale"][0])
    return model


BATCH = {"image": torch.zeros(5, 1), "text": torch.zeros(5, 1)}


@pytest.mark.parametrize("attention", ["sparsemax", "softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["max", "mean", "sum"])
def test_weights_logits_and_loss_are_those_of_the_official_code(attention: str, pooling: str) -> None:
    model, name = official(attention=attention, vote_pooling=pooling), f"{attention}/{pooling}"
    weights, vectors = model.concept_weights(BATCH), model.embed(BATCH)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(weights["image"], GOLDEN[f"{name}/image_weights"], **close)
    torch.testing.assert_close(weights["text"], GOLDEN[f"{name}/text_weights"], **close)
    torch.testing.assert_close(model.logits(vectors["image"], vectors["text"]), GOLDEN[f"{name}/logits"], **close)
    loss = model.contrastive_losses(vectors)["contrastive"]
    torch.testing.assert_close(loss, GOLDEN[f"{name}/loss"], **close)
    if f"{name}/grad_table" in GOLDEN:
        loss.backward()
        torch.testing.assert_close(model.table.grad, GOLDEN[f"{name}/grad_table"], **close)
        torch.testing.assert_close(model.logit_scale.logit_scale.grad, GOLDEN[f"{name}/grad_scale"][0], **close)
        for part in ("image", "text"):
            gradient = getattr(model, f"{part}_projection")[1].weight.grad
            torch.testing.assert_close(gradient, GOLDEN[f"{name}/grad_{part}"], **close)
        votes = model.concept_votes(BATCH)["image"]
        torch.testing.assert_close(votes * math.sqrt(8), GOLDEN["token_att"], **close)


def test_votes_are_the_maximum_over_positions_before_sparsemax(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, table = torch.randn(3, 5, 4, generator=generator), torch.randn(7, 4, generator=generator)
    lengths = torch.tensor([5, 2, 1])
    mask = mask_of(lengths, 5)
    expected = torch.tensor(
        [[max(float(queries[b, n] @ table[c]) / 2 for n in range(lengths[b])) for c in range(7)] for b in range(3)]
    )
    votes = fdt.pooled_votes(queries, table, mask)
    torch.testing.assert_close(votes, expected)
    monkeypatch.setattr(fdt, "CHUNK", 3)
    torch.testing.assert_close(fdt.pooled_votes(queries, table, mask), votes)
    floored = fdt.pooled_votes(queries, table, mask, padded_to=5)
    torch.testing.assert_close(floored[0], votes[0])  # without padding, there is no floor
    torch.testing.assert_close(floored[1:], votes[1:].clamp(min=0))
    assert (votes[1:] < 0).any()


def test_both_modalities_train_one_table_and_separate_tables_are_their_own(corpus: Corpus) -> None:
    recipe = fdt.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    batch = processor(image=[e["image"] for e in examples], text=[e["text"][0].text for e in examples])
    for one, name in (("image", "table"), ("text", "text_table")):
        shared = recipe.build(processor)
        shared.encode_modality(one, batch[one])[0, 0].backward()
        assert shared.table.grad.abs().sum() > 0
        separate = dataclasses.replace(recipe, table="separate").build(processor)
        separate.encode_modality(one, batch[one])[0, 0].backward()
        given = {key for key in ("table", "text_table") if separate.get_parameter(key).grad is not None}
        assert given == {name}


def test_clip_has_as_many_parameters_and_the_temperature_decays(corpus: Corpus) -> None:
    recipe = dataclasses.replace(fdt.Recipe(), temperature_decay=0.25)
    processor = fit_processor(recipe, corpus)
    model, clip = recipe.build(processor), dataclasses.replace(recipe, table="none").build(processor)
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (model, clip))
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert not hasattr(clip, "table")
    model.after_step(0.5)
    assert float(model.temperature) == pytest.approx(recipe.num_discrete_tokens / 32)
