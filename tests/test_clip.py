"""CLIP: against transformers' CLIPModel, and the published size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.modalities.text import Tokens
from polymodal.recipes.dual_encoders import clip

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/clip.npz").items()}
RECIPE = clip.Recipe(
    image=ImageEncoderConfig(image_size=16, patch_size=8, width=16, depth=2, num_heads=2, pool_type="cls"),
    text=TextEncoderConfig(30, context_length=8, width=16, depth=2, num_heads=2, causal=True, pool_type="eos"),
    embed_dim=12,
)


def weights_of(prefix: str) -> dict[str, Tensor]:
    prefix = f"weight/{prefix}"
    return {name.removeprefix(prefix): value for name, value in GOLDEN.items() if name.startswith(prefix)}


@torch.no_grad()
def fill(transformer: nn.Module, encoder: str) -> None:
    for number, block in enumerate(transformer.blocks):
        source = weights_of(f"{encoder}.encoder.layers.{number}.")
        for kind in ("weight", "bias"):
            qkv = [source[f"self_attn.{part}_proj.{kind}"] for part in "qkv"]
            getattr(block.attention.qkv, kind).copy_(torch.cat(qkv))
            for own, name in (
                (block.attention.out, "self_attn.out_proj"),
                (block.norm1, "layer_norm1"),
                (block.norm2, "layer_norm2"),
                (block.fc1, "mlp.fc1"),
                (block.fc2, "mlp.fc2"),
            ):
                getattr(own, kind).copy_(source[f"{name}.{kind}"])


def published() -> clip.CLIP:
    """CLIP with the weights of transformers' model."""
    model = clip.CLIP(RECIPE, 30).eval()
    image, text = model.image_encoder, model.text_encoder
    fill(image.transformer, "vision_model")
    fill(text.transformer, "text_model")
    image.norm_pre.load_state_dict(weights_of("vision_model.pre_layrnorm."))
    image.norm_post.load_state_dict(weights_of("vision_model.post_layernorm."))
    text.norm_post.load_state_dict(weights_of("text_model.final_layer_norm."))
    with torch.no_grad():
        image.class_token.copy_(GOLDEN["weight/vision_model.embeddings.class_embedding"])
        image.patch_embedding.weight.copy_(GOLDEN["weight/vision_model.embeddings.patch_embedding.weight"].flatten(1))
        image.positions.copy_(GOLDEN["weight/vision_model.embeddings.position_embedding.weight"])
        text.embedding.weight.copy_(GOLDEN["weight/text_model.embeddings.token_embedding.weight"])
        text.positions.copy_(GOLDEN["weight/text_model.embeddings.position_embedding.weight"])
    model.load_pretrained_weights(weights_of(""))
    return model


def test_embeddings_logits_and_loss_are_those_of_transformers() -> None:
    model, batch = published(), {"image": GOLDEN["pixels"], "text": Tokens(GOLDEN["ids"], GOLDEN["lengths"])}
    vectors = model.embed(batch)
    torch.testing.assert_close(vectors["image"], GOLDEN["image_embeds"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vectors["text"], GOLDEN["text_embeds"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.logits(vectors["image"], vectors["text"]), GOLDEN["logits"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.losses(batch)["contrastive"], GOLDEN["loss"], rtol=1e-5, atol=1e-5)


def test_the_published_model_has_its_parameters_and_augments_by_a_crop_alone() -> None:
    recipe = clip.Recipe.paper()
    with torch.device("meta"):
        assert sum(weight.numel() for weight in clip.CLIP(recipe, 49_408).parameters()) == 151_277_313
    assert (recipe.word_dropout, recipe.augmentation.hflip_prob, recipe.optimizer.max_grad_norm) == (0, 0, 0)


def test_a_temperature_at_the_bound_still_learns() -> None:
    """Released models stop at 4.6052, which is beyond ln 100: a bound in the forward pass would have no gradient."""
    model = published()
    with torch.no_grad():
        model.logit_scale.logit_scale.fill_(4.6052)
    model.losses({"image": GOLDEN["pixels"], "text": Tokens(GOLDEN["ids"], GOLDEN["lengths"])})[
        "contrastive"
    ].backward()
    assert model.logit_scale.logit_scale.grad.abs() > 1e-3
    model.logit_scale.after_step()
    assert model.logit_scale().item() == pytest.approx(100)
