"""Probabilistic fusion: distributions, samples and losses of the released code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.data.columns.questions import UNKNOWN_ANSWER
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.layers.probability_distribution_encoder import ProbabilityDistributionEncoder
from polymodal.models import probabilistic_fusion
from polymodal.models.fusion_encoder import FusionEncoderConfig
from polymodal.objectives.answers import binary_answer_loss
from polymodal.objectives.masked_modeling import masked_cross_entropy
from polymodal.objectives.wasserstein import entropy_margin_loss, squared_wasserstein2, wasserstein_info_nce

GOLDEN = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parent / "golden" / "map_uncertainty.npz").items()
}
NAMES = {
    "fc": "dense",
    "norm1": "norm",
    "attn.qkv": "query_key_value",
    "attn.mu_proj": "mean_projection",
    "attn.logsig_proj": "log_sigma_projection",
    "norm2": "mean_norm",
    "norm3": "log_sigma_norm",
    "mu_mlp.fc1": "mean_mlp.0",
    "mu_mlp.fc2": "mean_mlp.2",
    "logsig_mlp.fc1": "log_sigma_mlp.0",
    "logsig_mlp.fc2": "log_sigma_mlp.2",
}


def released(prefix: str) -> dict[str, Tensor]:
    """The weights of the released module, by our names."""
    weights = {}
    for name, value in GOLDEN.items():
        if name.startswith(f"{prefix}/"):
            module, _, kind = name.removeprefix(f"{prefix}/").rpartition(".")
            weights[f"{NAMES.get(module, module)}.{kind}"] = value
    return weights


def test_distributions_samples_and_losses_are_the_released_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = ImageEncoderConfig(16, 8, 8, 1, 2), TextEncoderConfig(300, 24, 8, 1, 2)
    model = probabilistic_fusion.ProbabilisticFusion(*towers, FusionEncoderConfig("co_attention", 8, 1, 0, 2), 11, 0, 3)
    for name in ("image", "text"):
        model.get_submodule(f"{name}_pde").load_state_dict(released(f"pde_{name}"))
    heads = {name: nn.Linear(*reversed(GOLDEN[f"heads/{name}.weight"].shape)) for name in ("pi", "pt", "itm", "mlm")}
    nn.ModuleDict(heads).load_state_dict(released("heads"))
    for module, name in ((model.image_pooler, "pi"), (model.text_pooler, "pt"), (model.itm_head, "itm")):
        module.load_state_dict(heads[name].state_dict())
    model.eval()
    tokens = {name: GOLDEN[name].clone().requires_grad_() for name in ("image", "text")}
    mask = torch.arange(7) < GOLDEN["lengths"][:, None]
    image, text = model.distribution("image", tokens["image"]), model.distribution("text", tokens["text"], mask)
    for name, gaussian in (("image", image), ("text", text)):
        torch.testing.assert_close(gaussian.mean, GOLDEN[f"mu_{name}"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gaussian.log_sigma, GOLDEN[f"log_sigma_{name}"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            gaussian.copies(GOLDEN[f"noise_{name}"]), GOLDEN[f"copies_{name}"], atol=1e-5, rtol=1e-5
        )
    first = image.select((slice(None), 0)), text.select((slice(None), 0))
    torch.testing.assert_close(squared_wasserstein2(*first), GOLDEN["w2"], atol=1e-4, rtol=1e-5)
    contrast = wasserstein_info_nce(*first, torch.tensor(1 / 200 / 0.07))
    torch.testing.assert_close(contrast, GOLDEN["contrast_0"], atol=1e-5, rtol=1e-5)
    for name, gradient in zip(tokens, torch.autograd.grad(contrast, tokens.values(), retain_graph=True), strict=True):
        torch.testing.assert_close(gradient, GOLDEN[f"contrast_grad_{name}"], atol=1e-5, rtol=1e-4)

    def noise(seeds: Tensor, counts: Tensor, samples: int, dim: int, stream: int) -> Tensor:
        return GOLDEN["noise_image" if stream == probabilistic_fusion.IMAGE else "noise_text"][:, :, 0]

    monkeypatch.setattr(probabilistic_fusion, "example_noise", noise)
    logits, labels = (
        model.itm_head(model.pooled_copies((text, image), torch.zeros(4, dtype=torch.long))),
        GOLDEN["itm_labels"].long(),
    )
    torch.testing.assert_close(logits.mean(0), GOLDEN["itm_logits"], atol=1e-5, rtol=1e-5)
    itm, margin = F.cross_entropy(logits.flatten(0, 1), labels.repeat(4)), float(GOLDEN["margin"])
    torch.testing.assert_close(itm, GOLDEN["itm_0"], atol=1e-5, rtol=1e-5)
    of_first = (entropy_margin_loss(first[0], margin) + entropy_margin_loss(first[1], margin)) / 2
    torch.testing.assert_close(itm + of_first, GOLDEN["itm_1"], atol=1e-5, rtol=1e-5)
    predicted = GOLDEN["mlm_labels"] >= 0
    copies = text.copies(GOLDEN["noise_text"])[:, predicted]
    mlm = masked_cross_entropy(heads["mlm"](copies).flatten(0, 1), GOLDEN["mlm_labels"][predicted].repeat(4))
    torch.testing.assert_close(mlm, GOLDEN["mlm_0"], atol=1e-5, rtol=1e-5)
    of_all = (entropy_margin_loss(image, margin) + entropy_margin_loss(text, margin)) / 2  # of padding, too
    torch.testing.assert_close(mlm + of_all, GOLDEN["mlm_1"], atol=1e-5, rtol=1e-5)


def test_dropout_of_a_pde_is_inside_its_mlps_too() -> None:
    torch.manual_seed(0)
    pde = ProbabilityDistributionEncoder(8, 2, dropout=0.5)
    for projection in (pde.mean_projection, pde.log_sigma_projection):
        nn.init.zeros_(projection.weight)
    x = torch.randn(1, 1, 8).expand(2, 200, 8)
    with torch.no_grad():
        whole, dropped = (pde.train(training)(x).mean - x for training in (False, True))
    ratio = (dropped / whole)[dropped != 0]
    assert ((ratio - 2).abs() > 1e-3).float().mean() > 0.9  # 2 for all, if outputs alone had dropout
    assert pde.eval()(x).mean.equal(pde(x).mean)


def test_wide_points_have_as_many_coordinates_as_mean_and_sigma() -> None:
    torch.manual_seed(0)
    towers = ImageEncoderConfig(16, 8, 8, 1, 2), TextEncoderConfig(300, 24, 8, 1, 2)
    config = FusionEncoderConfig("co_attention", 8, 1, 0, 2)
    model = probabilistic_fusion.ProbabilisticFusion(*towers, config, 11, kind="wide_points").eval()
    tokens = torch.randn(4, 3, 8)
    points = model.contrasted("image", tokens)
    gaussian = model.image_contrast_pde(model.fusion.image_projection(tokens)).select((slice(None), 0))
    torch.testing.assert_close(points.mean, torch.cat([gaussian.mean, gaussian.log_sigma], dim=1))
    square = torch.stack([torch.stack([(a - b).square().sum() for b in points.mean]) for a in points.mean])
    torch.testing.assert_close(squared_wasserstein2(points, points), square, atol=1e-4, rtol=1e-4)


def test_the_loss_of_answers_is_the_mean_over_copies_of_questions_with_a_known_answer() -> None:
    torch.manual_seed(0)
    logits, answer = torch.randn(3, 4, 5), torch.tensor([2, UNKNOWN_ANSWER, 0, 4])
    losses = []
    for copy in logits:
        for row, right in zip(copy, answer.tolist(), strict=True):
            if right != UNKNOWN_ANSWER:
                signs = torch.tensor([1.0 if place == right else -1.0 for place in range(5)])
                losses.append(-F.logsigmoid(signs * row).sum())
    torch.testing.assert_close(binary_answer_loss(logits, answer), torch.stack(losses).mean())
    of_copies = torch.stack([binary_answer_loss(copy, answer) for copy in logits])
    torch.testing.assert_close(of_copies.mean(), torch.stack(losses).mean())
