"""FuseLIP: the released code's sequences, embeddings, losses and gradients; and its fusion module."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import fit_processor
from polymodal.evaluation import validation
from polymodal.modalities.text import Tokens
from polymodal.models.late_fusion import FusionModule
from polymodal.recipes.dual_encoders import fuselip

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
        fuselip.Recipe.tiny(),
        context_length=12,
        depth=2,
        num_heads=2,
        mlm_probability=mlm_probability,
        logit_bias_init=-10.0,
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
    """The sides, with the masks of the released code split into those of codes and of texts."""
    has_image, text = GOLDEN["has_image"], Tokens(GOLDEN["text"], GOLDEN["lengths"])
    (size, longest), codes = GOLDEN["left_mask"].shape, GOLDEN["codes"].shape[1]
    mask, words = torch.zeros(2, 2 * size, longest, dtype=torch.bool)
    mask[:size], mask[size:, : GOLDEN["right_mask"].shape[1]] = GOLDEN["left_mask"], GOLDEN["right_mask"]
    for row, shown in enumerate(has_image.tolist()):
        words[row, : longest - codes * shown] = mask[row, codes * shown :]
    image, masked_codes = torch.zeros(int(has_image.sum()), 3, 32, 32), mask[has_image, :codes]
    return {"image": image, "has_image": has_image, "text": text, "masked_codes": masked_codes, "masked_text": words}


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


def test_validation_is_by_composed_queries(corpus: Corpus) -> None:
    recipe = dataclasses.replace(fuselip.Recipe.tiny(), batch_size=4)
    processor = fit_processor(recipe, corpus)
    assert "validation/tgit/R@1" in validation(corpus)(recipe.build(processor).eval(), processor)
