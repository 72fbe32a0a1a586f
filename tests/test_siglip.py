"""SigLIP: against transformers' SiglipModel; the unbounded temperature; attention pooling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from polymodal.encoders.image import ImageEncoder, ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.layers.perceiver_resampler import MAPHead
from polymodal.recipes.dual_encoders import siglip
from polymodal.serving.export.transformers import to_transformers
from polymodal.training import train
from polymodal.types import Budget

GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(Path(__file__).parent / "golden/siglip.npz").items()}
WEIGHTS = {name.removeprefix("weight/"): value for name, value in GOLDEN.items() if name.startswith("weight/")}


def test_logits_and_loss_are_those_of_transformers_at_a_released_temperature() -> None:
    model = siglip.SigLIP(siglip.Recipe.tiny(), 300)
    model.load_pretrained_weights(
        {"logit_scale": GOLDEN["logit_scale"], "logit_bias": GOLDEN["logit_bias"]} | projections(16)
    )
    vectors = {"image": GOLDEN["image_embeds"], "text": GOLDEN["text_embeds"]}
    torch.testing.assert_close(model.logits(vectors["image"], vectors["text"]), GOLDEN["logits"], rtol=1e-5, atol=1e-4)
    loss = model.contrastive_losses(vectors)["sigmoid"]
    torch.testing.assert_close(loss, GOLDEN["loss"], rtol=1e-5, atol=1e-5)
    loss.backward()
    assert model.logit_scale.logit_scale.grad.abs() > 1  # beyond CLIP's bound of 100, it still learns
    model.logit_scale.after_step()
    assert model.logit_scale().item() == pytest.approx(118.2)


def projections(width: int) -> dict[str, torch.Tensor]:
    return {f"{name}_projection.weight": torch.eye(width) for name in ("visual", "text")}


def test_attention_pooling_is_the_released_head() -> None:
    encoder = ImageEncoder(ImageEncoderConfig(image_size=16, patch_size=8, width=16, num_heads=2, pool_type="map"))
    head = encoder.map_head
    assert isinstance(head, MAPHead)
    head.load_pretrained_weights(WEIGHTS)
    torch.testing.assert_close(head(GOLDEN["patches"]), GOLDEN["pooled"], rtol=1e-5, atol=1e-5)
    image = torch.randn(2, 3, 16, 16)
    patches, pooled = encoder(image)
    torch.testing.assert_close(pooled, head(patches))
    torch.testing.assert_close(encoder.pooled(image), pooled)
    for wrong, pool in (("head.", head), ("vision_model.head.", MAPHead(8, 2))):
        with pytest.raises(UserError, match="no attention pooling head of width"):
            pool.load_pretrained_weights(WEIGHTS, wrong)


def test_the_published_model_is_the_released_one_but_for_what_the_preset_says() -> None:
    recipe = siglip.Recipe.paper()
    with torch.device("meta"):
        ours = sum(weight.numel() for weight in siglip.SigLIP(recipe, 32_000).parameters())
        text = {"vocab_size": 32_000, "max_position_embeddings": 64, "projection_size": 768}
        vision = {"image_size": 224, "patch_size": 16}
        released = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    theirs = sum(weight.numel() for weight in released.parameters())
    assert theirs == 203_155_970
    # Ours has a projection of images and a norm before the blocks, and two biases fewer.
    assert ours == theirs + 768 * 768 + 2 * 768 - 2 * 768
    assert (recipe.logit_scale_init, recipe.logit_bias_init, recipe.word_dropout) == (10, -10, 0)
    assert siglip.Recipe().logit_scale_init == 10


def test_a_run_with_attention_pooling_is_exported(corpus: Corpus, tmp_path: Path) -> None:
    run = train(siglip.Recipe.tiny(), corpus, Budget(steps=1))
    (tmp_path / "export").mkdir()
    assert to_transformers(run, tmp_path / "export")[1] < 1e-4
