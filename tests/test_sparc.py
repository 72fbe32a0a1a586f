"""SPARC: alignment weights and local loss by their formulas, and what global and patch embeddings are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from polymodal.corpora import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.objectives.contrastive import info_nce
from polymodal.recipes.dual_encoders import clip, sparc
from polymodal.rng import ExampleRNG
from polymodal.serving.export.transformers import to_transformers
from polymodal.training import train
from polymodal.training.initialization import with_pretrained
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.trainer import build_run
from polymodal.types import Budget


def random_pairs(batch=3, length=5, patches=16, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, dim, generator=generator),
        torch.randn(batch, patches, dim, generator=generator),
        torch.arange(length) < torch.tensor([5, 3, 1])[:batch, None],
    )


@pytest.mark.parametrize("grouping", ["sparse", "no_threshold", "softmax"])
def test_grouping_weights_sum_to_one(grouping):
    tokens, patches, _ = random_pairs()
    weights = sparc.grouping_weights(tokens, patches, grouping)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert (weights >= 0).all()


def test_sparse_weights_follow_the_three_steps():
    tokens, patches, _ = random_pairs()
    weights = sparc.grouping_weights(tokens, patches, "sparse")
    similarity = torch.einsum("bld,bpd->blp", tokens, patches)
    for b in range(3):
        for token in range(5):
            row = similarity[b, token]
            row = (row - row.min()) / (row.max() - row.min())
            row = torch.where(row >= 1 / 16, row, torch.zeros(()))
            torch.testing.assert_close(weights[b, token], row / row.sum())
    assert (weights == 0).any()
    assert ((weights > 0).sum(-1) >= 1).all()


def test_a_token_alike_to_all_patches_takes_the_same_of_each():
    patches = torch.ones(1, 4, 3)
    weights = sparc.grouping_weights(torch.randn(1, 2, 3), patches, "sparse")
    torch.testing.assert_close(weights, torch.full((1, 2, 4), 0.25))


def test_local_loss_equals_the_formula_pair_by_pair():
    tokens, patches, mask = random_pairs()
    scale = torch.tensor(5.0)
    losses = sparc.local_loss(tokens, patches, mask, scale)
    for b in range(3):
        count = int(mask[b].sum())
        own = tokens[b, :count]
        groups = sparc.grouping_weights(own[None], patches[b : b + 1], "sparse")[0] @ patches[b]
        expected = info_nce(F.normalize(groups, dim=-1), F.normalize(own, dim=-1), scale)
        torch.testing.assert_close(losses[b], expected)


def test_a_pair_s_local_loss_does_not_change_with_the_other_pairs():
    tokens, patches, mask = random_pairs()
    scale = torch.tensor(5.0)
    before = sparc.local_loss(tokens, patches, mask, scale)
    tokens[1], patches[1] = torch.randn(5, 8), torch.randn(16, 8)
    after = sparc.local_loss(tokens, patches, mask, scale)
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]])
    assert not torch.isclose(before[1], after[1])


def test_a_caption_of_one_token_has_no_local_loss_and_no_gradient():
    tokens, patches, mask = random_pairs()
    tokens.requires_grad_()
    losses = sparc.local_loss(tokens, patches, mask, torch.tensor(5.0))
    assert losses[2] == 0
    losses[2].backward()
    assert tokens.grad.abs().sum() == 0


def test_images_and_patches_pass_the_non_linear_head_and_the_local_loss_does_not(corpus: Corpus) -> None:
    recipe = sparc.Recipe.tiny()
    processor = fit_processor(recipe, corpus)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    batch = recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))
    model = recipe.build(processor).eval()
    patches, _ = model.image_encoder(batch["image"])
    expected = F.normalize(model.image_projection(model.image_head(patches.mean(1))), dim=-1)
    torch.testing.assert_close(model.encode_image(batch["image"]), expected)
    torch.testing.assert_close(model.encode(batch)["image"], expected)
    expected = F.normalize(F.gelu(patches @ model.image_head[0].weight.T + model.image_head[0].bias)
                           @ model.image_projection.weight.T, dim=-1)  # fmt: skip
    torch.testing.assert_close(model.encode_patches(batch["image"]), expected)
    tokens = model.encode_tokens("text", batch["text"])
    local = sparc.local_loss(
        tokens.tokens, model.image_projection(patches), batch["text"].content_mask, model.logit_scale()
    )
    losses = model.losses(batch)
    torch.testing.assert_close(losses["local"], recipe.local_weight * local.mean())
    assert local.min() > 0


def test_tokens_of_the_default_know_their_context_and_images_are_averaged() -> None:
    for recipe in (sparc.Recipe(), sparc.Recipe.paper()):
        assert recipe.text.depth > 0
        assert recipe.image.depth > 0
        assert recipe.image.pool_type == "avg"
        assert recipe.word_dropout == 0


def test_the_head_is_exported(corpus: Corpus, tmp_path: Path) -> None:
    run = train(sparc.Recipe.tiny(), corpus, Budget(steps=1))
    (tmp_path / "export").mkdir()
    assert to_transformers(run, tmp_path / "export")[1] < 1e-4


def test_a_pretrained_dual_encoder_keeps_its_image_embedding(
    clip_folder: Path, small_emoji: Corpus, tmp_path: Path
) -> None:
    init = f"hf:{clip_folder}"
    recipe = with_pretrained(sparc.Recipe(batch_size=8, optimizer=OptimizerConfig(learning_rate=1e-3)), init)
    run = build_run(recipe, small_emoji, {}, 0, init=init)
    model, image = run.model.eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = transformers.CLIPModel.from_pretrained(clip_folder).eval().get_image_features(image)
        expected = getattr(expected, "pooler_output", expected)
        torch.testing.assert_close(model.encode_image(image), F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    trained = train(recipe, small_emoji, Budget(steps=2), init=init)
    assert trained.model.image_head[0].weight.abs().max() > 0  # it learns all the same
    (tmp_path / "export").mkdir()
    assert to_transformers(trained, tmp_path / "export")[1] < 1e-4


def test_h_v_begins_as_the_identity_after_a_run_without_one_and_is_taken_over_from_one_of_sparc() -> None:
    assert not sparc.Recipe().residual_head
    assert sparc.Recipe().starting_from(None) == sparc.Recipe()
    assert sparc.Recipe().starting_from(clip.Recipe()).residual_head
    assert not sparc.Recipe(residual_head=True).starting_from(sparc.Recipe()).residual_head
    assert sparc.Recipe().starting_from(sparc.Recipe(residual_head=True)).residual_head
