"""FuseLIP: the released code's sequences, embeddings, losses and gradients; pairs, transformations, late fusion."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polymodal.data.composed_pairs import group_of, positional
from polymodal.errors import UserError
from polymodal.evaluation.tasks.composed_retrieval import first_place
from polymodal.modalities.image_transformations import EVALUATED, FAMILIES, transformations
from polymodal.modalities.question import Question
from polymodal.modalities.region import Region
from polymodal.modalities.text import Tokens
from polymodal.models.late_fusion import FusionModule
from polymodal.recipes.dual_encoders import fuselip
from polymodal.rng import ExampleRNG

GOLDEN = {k: torch.from_numpy(v) for k, v in np.load(Path(__file__).parent / "golden/fuselip.npz").items()}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OFFICIAL = {
    "norm1": "ln_1", "attention.qkv.weight": "attn.in_proj_weight", "attention.qkv.bias": "attn.in_proj_bias",
    "attention.out": "attn.out_proj", "norm2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj",
}  # fmt: skip


def block_name(name: str) -> str:
    """The official name of a parameter of `transformer.blocks`."""
    for ours, theirs in OFFICIAL.items():
        name = name.replace(ours, theirs)
    return name.replace("transformer.blocks", "transformer.resblocks")


def official(mlm_probability: float = 0.1) -> fuselip.FuseLIP:
    """Ours with the weights and the image codes of the released code."""
    recipe = dataclasses.replace(
        fuselip.Recipe.tiny(), context_length=12, depth=2, mlm_probability=mlm_probability, logit_bias_init=-10.0
    )
    model = fuselip.FuseLIP(recipe, 30, (28, 29)).eval()
    weights = {k.removeprefix("weight/"): v for k, v in GOLDEN.items() if k.startswith("weight/")}
    renamed = {"embedding": "token_embedding", "norm_post": "ln_final"}
    for name, parameter in model.encoder.named_parameters():
        first, _, rest = name.partition(".")
        theirs = "positional_embedding" if name == "positions" else f"{renamed.get(first, first)}.{rest}"
        parameter.data.copy_(weights[block_name(theirs)])
    for name, parameter in model.mlm_head.named_parameters():
        parameter.data.copy_(weights[f"mask_prediction_head.{name.replace('norm', 'layer_norm')}"])
    model.tokenizer.encode = lambda image: GOLDEN["codes"][GOLDEN["has_image"]]
    return model


def golden_batch() -> fuselip.PairBatch:
    has_image, text = GOLDEN["has_image"], Tokens(GOLDEN["text"], GOLDEN["lengths"])
    mask, codes = torch.cat([GOLDEN["left_mask"], widened(GOLDEN["right_mask"])]), GOLDEN["codes"].shape[1]
    words = torch.zeros_like(text.ids, dtype=torch.bool)
    for row, shown in enumerate(has_image.tolist()):
        own = mask[row, codes * shown :]
        words[row, : len(own)] = own
    image = torch.zeros(int(has_image.sum()), 3, 32, 32)
    masked_codes = mask[has_image, :codes]
    return {"image": image, "has_image": has_image, "text": text, "masked_codes": masked_codes, "masked_text": words}


def widened(mask: Tensor) -> Tensor:
    return torch.nn.functional.pad(mask, (0, GOLDEN["left_mask"].shape[1] - mask.shape[1]))


def test_sequences_embeddings_losses_and_gradients_are_those_of_the_released_code() -> None:
    model, batch = official(), golden_batch()
    tokens = model.sequences(batch)
    expected = torch.cat([GOLDEN["left_ids"], GOLDEN["right_ids"]])
    assert torch.equal(tokens.ids.where(tokens.mask, 0), expected)
    assert (tokens.ids == 29).sum(1).tolist() == [1] * 8  # one end token each, also of those that are cut
    torch.testing.assert_close(model.encode_sides(batch), GOLDEN["plain"], **CLOSE)
    losses = model.losses(batch)
    torch.testing.assert_close(losses["sigmoid"], GOLDEN["sigmoid"], **CLOSE)
    torch.testing.assert_close(losses["mmm"], 0.25 * GOLDEN["mmm"], **CLOSE)
    sum(losses.values()).backward()
    gradients = {
        "embedding": model.encoder.embedding.weight, "positions": model.encoder.positions,
        "dense": model.mlm_head.dense.weight, "scale": model.logit_scale.logit_scale, "bias": model.logit_bias,
    }  # fmt: skip
    for name, parameter in gradients.items():
        torch.testing.assert_close(parameter.grad, GOLDEN[f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_the_fusion_module_is_that_of_the_released_code() -> None:
    module = FusionModule(16, 2, 2)
    for name, parameter in module.named_parameters():
        theirs = name.replace("attention.", "attn.", 1) if name.startswith("attention") else block_name(name)
        theirs = theirs.replace("norm.", "pool_attn_ln.") if name.startswith("norm") else theirs
        theirs = theirs if name.startswith("transformer") else f"attention_pooler.{theirs}"
        parameter.data.copy_(GOLDEN[f"module_weight/{theirs}"])
    torch.testing.assert_close(module(GOLDEN["module/image"], GOLDEN["module/text"]), GOLDEN["module/out"], **CLOSE)


def test_transformations_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    made = {family: transformations(image, family, EVALUATED[family], rng) for family in FAMILIES}
    assert {family: len(found) for family, found in made.items()} == dict(EVALUATED)
    assert all(one.target.shape == image.shape for found in made.values() for one in found)
    turned = {one.instruction: one.target for one in made["rotate"]}
    assert np.array_equal(turned["rotate 90 degrees clockwise"], np.rot90(image, -1))
    assert all(
        np.array_equal(one.target, one.source[:, ::-1] if "horizontal" in one.instruction else one.source[::-1])
        for one in made["flip"]
    )
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[8:, :8] = 200
    crops = {one.instruction: one.target.mean() for one in transformations(flat, "crop", 9, rng)}
    assert max(crops, key=lambda name: crops[name]) == "crop to lower left"


def test_a_group_has_its_caption_and_different_queries() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    regions = [Region("cat", (0, 0, 400, 400)), Region("cat", (500, 0, 900, 400)), Region("bus", (200, 500, 700, 900))]
    assert positional(regions) == [("the left cat", 0), ("the right cat", 1)]
    questions = [Question("how many?", "3", "count"), Question("how much?", "3", "count")]
    for seed in range(20):
        pairs = group_of(image, "cats", regions, questions, 6, np.random.default_rng(seed))
        assert len(pairs) == 6
        assert (pairs[0].left.text, pairs[0].right.text) == ("", "cats")
        queries = {(pair.left.image.tobytes(), pair.left.text) for pair in pairs}
        assert len(queries) == 6
        assert all(pair.left.text != "cat" for pair in pairs)  # a name of two regions says neither
    assert len({*ExampleRNG.of(0, 0, 3).split(4).seeds.tolist()}) == 12


def test_ties_are_wrong_and_a_short_context_is_refused() -> None:
    similarity = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert first_place(similarity, torch.tensor([0, 1, 0])).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="--context-length be above 18"):
        fuselip.Recipe(context_length=18)
