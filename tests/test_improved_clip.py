"""Improved CLIP: losses and heads against the released code, its batches, its teacher, and what it evaluates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor, fit_processor
from polymodal.encoders.encoder import pooled_views
from polymodal.errors import UserError
from polymodal.layers.lora import add_lora
from polymodal.layers.projection_head import SyncBatchNorm1d
from polymodal.objectives import multi_view
from polymodal.objectives.multi_view import barlip_loss, cl2l_loss, siamlip_loss, swalip_loss
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.dual_encoders.improved_clip import ImprovedCLIP, MultiViewBatch, Recipe
from polymodal.rng import ExampleRNG
from polymodal.training import train
from polymodal.types import Budget

PATH = Path(__file__).parent / "golden/improved_clip.npz"
GOLDEN = {name: torch.from_numpy(value) for name, value in np.load(PATH).items()}
SCALES = (torch.tensor(1 / 0.07), torch.tensor(10.0))


def built(corpus: Corpus, seed: int = 0, **choices: Any) -> tuple[ImprovedCLIP, MultiViewBatch]:
    recipe = dataclasses.replace(Recipe.tiny(), **choices)
    processor = fit_processor(recipe, corpus)
    assert isinstance(processor, Processor)
    examples = Reader(corpus, processor).read_all(corpus.rows("train")[:4])[1]
    torch.manual_seed(seed)
    return recipe.build(processor), recipe.training_batch(examples, processor, ExampleRNG.of(0, 0, 4))


def equal(found: Tensor, name: str) -> None:
    torch.testing.assert_close(found, GOLDEN[name], rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


def test_losses_are_those_of_the_released_code() -> None:
    z, h = F.normalize(GOLDEN["z"], dim=-1), F.normalize(GOLDEN["h"], dim=-1)
    views = (list(h[0]), list(h[1]))
    equal(cl2l_loss((z[0], z[1]), views, *SCALES, 0.1), "cl2l_avg")
    equal(2 * cl2l_loss((z[0], z[1]), views, *SCALES, 0.1), "cl2l_sum")
    equal(cl2l_loss((z[0], z[1]), ([], []), *SCALES, 0.1), "cl2l_k0")
    equal(swalip_loss(views, SCALES[1]), "swalip")
    v, p, targets = ([list(GOLDEN[f"{n}_{m}"]) for m in ("image", "text")] for n in ("siam_v", "siam_p", "momentum"))
    equal(siamlip_loss((p[0], p[1]), (v[0], v[1])), "siamlip")
    equal(siamlip_loss((p[0], p[1]), (targets[0], targets[1])), "byolip")
    equal(barlip_loss((list(GOLDEN["bar_v_image"]), list(GOLDEN["bar_v_text"]))), "barlip")


@pytest.mark.parametrize(("loss", "name", "out"), [("siamlip", "siam", 3), ("barlip", "bar", 5)])
def test_heads_are_those_of_the_released_code(loss: Any, name: str, out: int) -> None:
    image, text = (dataclasses.replace(c, width=w, num_heads=1) for c, w in ((Recipe().image, 7), (Recipe().text, 5)))
    recipe = Recipe(image=image, text=text, ssl_loss=loss, ssl_hidden_dim=6, ssl_output_dim=out)
    model = ImprovedCLIP(recipe, 20).train()
    for modality in ("image", "text"):
        load(model.ssl_projectors[modality], f"{name}/{modality}/projector/")
        views = [model.ssl_projectors[modality](view) for view in GOLDEN[f"feats_{modality}"]]
        equal(torch.stack(views), f"{name}_v_{modality}")
        if name == "siam":
            load(model.ssl_predictors[modality], f"{name}/{modality}/predictor/")
            equal(torch.stack([model.ssl_predictors[modality](view) for view in views]), f"siam_p_{modality}")


@torch.no_grad()
def load(head: nn.Module, prefix: str) -> None:
    """The golden weights, whose numbers count layers with parameters."""
    layers = [layer for layer in head.children() if any(True for _ in layer.parameters())]
    found = {name.removeprefix(prefix): value for name, value in GOLDEN.items() if name.startswith(prefix)}
    assert {f"{n}.{name}" for n, layer in enumerate(layers) for name, _ in layer.named_parameters()} == found.keys()
    for name, value in found.items():
        number, _, kind = name.partition(".")
        getattr(layers[int(number)], kind).copy_(value)


def test_the_method_is_clip_without_local_views_and_the_sum_doubles_the_contrastive_loss(corpus: Corpus) -> None:
    model, batch = built(corpus, num_strong_views=0)
    torch.manual_seed(0)
    plain = clip.CLIP(clip.Recipe.tiny(), model.get_parameter("text_encoder.embedding.weight").shape[0])
    torch.testing.assert_close(model.losses(batch)["contrastive"], plain.losses(batch)["contrastive"])
    (mean, batch), (total, _) = built(corpus), built(corpus, loss_avg_or_sum="sum")
    torch.testing.assert_close(total.losses(batch)["contrastive"], 2 * mean.losses(batch)["contrastive"])


def test_local_views_have_projectors_of_their_own_and_stand_one_after_the_other(corpus: Corpus) -> None:
    model, batch = built(corpus)
    assert (len(batch["image"]), len(batch["local_image"]), len(batch["local_text"])) == (4, 8, 8)
    model.eval()
    images = model.image_encoder.pooled(batch["local_image"]).chunk(2)
    texts = model.text_encoder.pooled(batch["local_text"]).chunk(2)
    h = [[F.normalize(model.local_projectors[m](view), dim=-1) for view in views] for m, views in
         (("image", images), ("text", texts))]  # fmt: skip
    z = model.embed({"image": batch["image"], "text": batch["text"]})
    expected = cl2l_loss((z["image"], z["text"]), (h[0], h[1]), model.logit_scale(), model.local_logit_scale(), 0.1)
    torch.testing.assert_close(model.losses(batch)["contrastive"], expected)
    local, _ = built(corpus, eval_projector="h")
    torch.testing.assert_close(local.eval().embed({"image": batch["local_image"]})["image"], torch.cat(h[0]))


@torch.no_grad()
def test_patches_and_logits_are_of_the_projector_that_is_evaluated(corpus: Corpus) -> None:
    for projector in ("z", "h"):
        model, batch = built(corpus, eval_projector=projector)
        model.eval().local_logit_scale.logit_scale.fill_(1.0)
        patches, _ = model.image_encoder(batch["image"])
        heads = {"z": model.image_projection, "h": model.local_projectors["image"]}
        expected = torch.stack([F.normalize(heads[projector](row), dim=-1) for row in patches])
        torch.testing.assert_close(model.encode_patches(batch["image"]), expected)
        vectors = model.embed({"image": batch["image"], "text": batch["text"]})
        scale = {"z": 1 / 0.07, "h": torch.e}[projector]
        expected = scale * vectors["image"] @ vectors["text"].T
        torch.testing.assert_close(model.logits(vectors["image"], vectors["text"]), expected)


def test_no_pair_of_local_views_is_its_own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = (list(F.normalize(torch.randn(3, 6, 4), dim=-1)) for _ in range(2))
    given: list[Tensor] = []
    kept = multi_view.sinkhorn
    monkeypatch.setattr(multi_view, "sinkhorn", lambda similarity: given.append(similarity) or kept(similarity))
    swalip_loss((images, texts), SCALES[1])
    pairs = [image @ text.T for image in images for text in texts]
    used = [next(n for n, pair in enumerate(pairs) if torch.equal(pair, target)) for target in given[::2]]
    assert sorted(used) == list(range(9))
    assert all(pair != target for pair, target in enumerate(used))


@pytest.mark.parametrize("targets", ["text_encoder.*", "*text_encoder.*"])
def test_a_teacher_follows_the_weights_of_its_encoder_with_lora(targets: str, corpus: Corpus) -> None:
    """It had low-rank updates of its own, which required gradients and were averaged factor by factor, or was refused
    where only its encoder's layers were named."""
    recipe = dataclasses.replace(Recipe.tiny(), ssl_loss="byolip", ema_momentum=0.9, lora_rank=2)
    train(dataclasses.replace(recipe, lora_target_modules=(targets,)), corpus, Budget(steps=1))
    model, _ = built(corpus, ssl_loss="byolip", ema_momentum=0.9)
    model.teacher.before_training()
    assert add_lora(model, 2, (targets,))
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    name = "transformer.blocks.0.attention.qkv"
    layer, copied = model.text_encoder.get_submodule(name), model.teacher["text_encoder"].get_submodule(name)
    torch.nn.init.normal_(layer.lora_b)
    with torch.no_grad():
        expected = 0.9 * copied.weight + 0.1 * (layer.base.weight + layer.lora_b @ layer.lora_a)
    model.after_step(0.0)
    torch.testing.assert_close(copied.weight, expected)


def test_dropout_is_of_local_captions_only(corpus: Corpus) -> None:
    recipe = Recipe.tiny()
    model, batch = built(corpus, text=dataclasses.replace(recipe.text, dropout=0.5))
    first, second = (pooled_views(model.train().text_encoder, batch["text"], batch["local_text"]) for _ in range(2))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
    assert all(part.training for part in model.modules())


def test_byolip_s_teacher_moves_by_average_only_and_normalizes_by_its_own_batches(corpus: Corpus) -> None:
    recipe = dataclasses.replace(Recipe.tiny(), ssl_loss="byolip", ema_momentum=0.9, batch_size=8)
    teacher = train(recipe, corpus, Budget(steps=3)).model.teacher
    norms = [part for part in teacher.modules() if isinstance(part, SyncBatchNorm1d)]
    assert len(norms) == 4
    for norm in norms:
        assert norm.num_batches_tracked == 3 * 3  # steps, views
        assert norm.running_mean.abs().max() > 0
    model, batch = built(corpus, ssl_loss="byolip", ema_momentum=0.9)
    model.train().losses(batch)["byolip"].backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in model.teacher.parameters())
    with model.teacher.momentum_forward():
        feature = model.teacher["image_encoder"].pooled(batch["image"])
        target = model.teacher["image_projector"](feature)
    torch.testing.assert_close(target.mean(0), torch.zeros(16), rtol=0, atol=1e-5)  # of this very batch
    with torch.no_grad():
        model.image_encoder.positions.add_(1.0)
    before = model.teacher["image_encoder"].positions.clone()
    model.after_step(0.5)
    torch.testing.assert_close(model.teacher["image_encoder"].positions, before + 0.1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["siamlip", "barlip", "swalip"])
def test_every_added_loss_falls_on_one_batch(loss: Any, corpus: Corpus) -> None:
    model, batch = built(corpus, ssl_loss=loss, label_smoothing=0.0)
    optimizer, values = torch.optim.Adam(model.train().parameters(), 3e-3), []
    for _ in range(15):
        losses = model.losses(batch)
        optimizer.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        values.append(float(losses[loss].detach()))
    assert sum(values[-3:]) < sum(values[:3])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="label-smoothing 0"):
        Recipe(ssl_loss="swalip", label_smoothing=0.1)
    with pytest.raises(UserError, match="eval-projector h"):
        Recipe(num_strong_views=0, eval_projector="h")
