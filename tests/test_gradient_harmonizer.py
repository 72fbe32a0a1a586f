"""Gradient harmonization as a gradient transform of any method: by groups, and by the features of single examples."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from polymodal.errors import UserError
from polymodal.training.grad_cache import GradCacheMethod
from polymodal.training.gradient_harmonization import GradientHarmonizer, gradient_cosine, project_conflicting
from polymodal.training.parallel import World

ALONE = World(0, 1, torch.device("cpu"))


def gradients(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


class Opposed(GradCacheMethod, nn.Module):
    """Two losses of one shared vector, which pull apart for the second half of the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.scale = nn.Parameter(torch.tensor([1.0, 1.0])), nn.Parameter(torch.tensor(1.0))

    def encode(self, batch: dict) -> dict[str, torch.Tensor]:
        return {"first": batch["first"] * self.shared, "second": batch["second"] * self.shared}

    def contrastive_losses(self, vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"one": self.scale * vectors["first"].sum(1).mean(), "other": vectors["second"].sum(1).mean()}


def test_groups_that_conflict_are_left_out_or_projected_by_hand() -> None:
    agreeing = {"first": torch.tensor([[1.0, 0.0]]), "second": torch.tensor([[1.0, 1.0]])}
    against = {"first": torch.tensor([[1.0, 0.0]]), "second": torch.tensor([[-1.0, 1.0]])}
    method = Opposed()
    GradientHarmonizer("curriculum").backward(method, [agreeing, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    assert torch.allclose(method.shared.grad, torch.tensor([2.0, 1.0])), "the agreeing one alone"
    assert torch.allclose(method.scale.grad, torch.tensor(1.0)), "what only the comparison has, once"
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("realign").backward(method, [agreeing, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    # (1, 0) and (-1, 1) become (1/2, 1/2) and (0, 1); the mean over both groups.
    assert torch.allclose(method.shared.grad, torch.tensor([(2.0 + 0.5) / 2, (1.0 + 1.5) / 2]))


def test_a_head_of_the_comparison_learns_nothing_from_groups_that_are_skipped() -> None:
    agreeing = {"first": torch.tensor([[1.0, 0.0]]), "second": torch.tensor([[1.0, 1.0]])}
    against = {"first": torch.tensor([[7.0, 0.0]]), "second": torch.tensor([[-1.0, 1.0]])}
    method = Opposed()
    harmony = GradientHarmonizer("curriculum")
    harmony.backward(method, [agreeing, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    assert harmony.skipped == [False, True]
    torch.testing.assert_close(method.scale.grad, torch.tensor(1.0))
    method.zero_grad(set_to_none=True)
    harmony.backward(method, [against, against], {}, lambda _: nullcontext(), 1.0, ALONE)
    assert gradients(method) == {}


def test_a_parameter_of_both_halves_gets_the_gradients_of_both() -> None:
    class Both(Opposed):
        def contrastive_losses(self, vectors: dict) -> dict:
            return {
                name: loss + self.shared.square().sum() for name, loss in super().contrastive_losses(vectors).items()
            }

    groups = [{name: torch.rand(2, 2) for name in ("first", "second")} for _ in range(3)]
    method = Both()
    whole = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    sum(method.losses(whole).values()).backward()
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("curriculum").backward(method, groups, {}, lambda _: nullcontext(), -1.0, ALONE)
    assert torch.allclose(method.shared.grad, plain["shared"])
    assert torch.allclose(method.scale.grad, plain["scale"])


def test_a_frozen_encoder_takes_no_part() -> None:
    class HalfFrozen(Opposed):
        def encode(self, batch: dict) -> dict[str, torch.Tensor]:
            return super().encode(batch) | {"first": batch["first"]}

    groups = [{name: torch.rand(2, 2) for name in ("first", "second")} for _ in range(2)]
    method = HalfFrozen()
    whole = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    sum(method.losses(whole).values()).backward()
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("curriculum").backward(method, groups, {}, lambda _: nullcontext(), -1.0, ALONE)
    assert torch.allclose(method.shared.grad, plain["shared"])
    assert torch.allclose(method.scale.grad, plain["scale"])


@pytest.mark.parametrize("losses", [2, 3])
def test_rows_are_projected_as_single_gradients(losses: int) -> None:
    """Against a plain loop over rows; a third loss is projected in the random order that the seed gives."""
    stacked = torch.randn(losses, 40, 3, generator=torch.Generator().manual_seed(0)).double()
    stacked[:, 0], stacked[1, 1] = stacked[:1, 0], 0.0  # agreeing, and a loss without gradient
    for row in range(40):
        torch.manual_seed(1)
        together = project_conflicting(stacked)[:, row]
        torch.manual_seed(1)
        originals, by_hand = stacked[:, row], stacked[:, row].clone()
        for one in range(losses):
            for other in torch.randperm(losses).tolist():
                dot = sum(float(x * y) for x, y in zip(by_hand[one], originals[other], strict=True))
                if one != other and dot < 0:
                    by_hand[one] = by_hand[one] - dot / float(originals[other] @ originals[other]) * originals[other]
        torch.testing.assert_close(together, by_hand, atol=1e-12, rtol=0)
        pairs = [(i, j) for i in range(losses) for j in range(i) if originals[i].any() and originals[j].any()]
        cosines = [float(torch.cosine_similarity(originals[i], originals[j], dim=0)) for i, j in pairs]
        assert float(gradient_cosine(stacked)[row]) == pytest.approx(min([1.0, *cosines]))
    assert torch.equal(project_conflicting(stacked)[:, 0], stacked[:, 0])
    if losses == 2:  # neither loss rises to first order, and originals and projections are orthogonal
        aligned = project_conflicting(stacked)
        assert (((aligned.sum(0) * stacked).sum(-1)) >= -1e-12).all()
        conflict = (stacked[0] * stacked[1]).sum(-1) < 0
        assert float((aligned[0] * stacked[1]).sum(-1)[conflict].abs().max()) < 1e-12


class TwoHeads(GradCacheMethod, nn.Module):
    """An encoder, and two losses of its feature."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.scale = nn.Linear(3, 2, bias=False), nn.Parameter(torch.tensor(2.0))

    def encode(self, batch: dict) -> dict[str, torch.Tensor]:
        return {"feature": self.encoder(batch["x"]), "first": batch["first"], "second": batch["second"]}

    def contrastive_losses(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "one": self.scale * (rows["feature"] * rows["first"]).sum(1).mean(),
            "other": (rows["feature"] * rows["second"]).sum(1).mean(),
        }


@pytest.mark.parametrize("kind", ["realign", "curriculum", "both", "random"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_features_of_single_examples_are_compared(kind: str, pieces: int) -> None:
    """Against a loop over examples: d loss / d W is the sum of projected feature gradients times the input."""
    torch.manual_seed(0)
    method, rows = TwoHeads(), {"x": torch.randn(8, 3), "first": torch.randn(8, 2), "second": torch.randn(8, 2)}
    rows["second"][0] = 0.0  # without the second modality: one gradient, neither projected nor skipped
    rows["wrong"] = torch.arange(8) > 3
    batches = [{name: value[n::pieces] for name, value in rows.items()} for n in range(pieces)]
    harmony = GradientHarmonizer(kind, granularity="feature", misaligned="wrong")
    torch.manual_seed(5)
    harmony.backward(method, batches, {}, lambda _: nullcontext(), 0.0, ALONE)
    skipped, expected, kept = list(harmony.skipped), torch.zeros(2, 3), 0
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in rows}
    cosines = []
    for n in range(8):
        g1, g2 = 2.0 * rows["first"][n], rows["second"][n]
        cosine = float(torch.cosine_similarity(g1, g2, dim=0)) if g2.any() else 1.0
        cosines.append(cosine)
        if kind in ("curriculum", "both") and cosine <= -0.3:
            assert skipped[n]
            continue
        if kind == "random" and skipped[n]:
            continue
        kept += 1
        if kind in ("realign", "both") and cosine < 0:
            g1, g2 = g1 - (g1 @ g2) / (g2 @ g2) * g2, g2 - (g1 @ g2) / (g1 @ g1) * g1
        expected += torch.outer(g1 + g2, rows["x"][n])
    assert kept < 8 or kind == "realign"
    assert sum(skipped) == (0 if kind == "realign" else sum(cosine <= -0.3 for cosine in cosines))
    torch.testing.assert_close(method.encoder.weight.grad, expected / kept)
    plain = (rows["first"] * method.encoder(rows["x"])).sum(1)[~torch.tensor(skipped)].mean()
    torch.testing.assert_close(method.scale.grad, plain.detach())
    ordered = [
        a < b
        for a, wrong in zip(cosines, rows["wrong"], strict=True)
        if wrong
        for b, other in zip(cosines, rows["wrong"], strict=True)
        if not other
    ]
    report = harmony.report()["gradient_harmonization"]
    assert report["misalignment_auc"] == pytest.approx(sum(ordered) / len(ordered))
    assert report["gradient_cosine"] == pytest.approx(sum(cosines) / 8, abs=1e-6)


def test_without_conflict_features_have_the_plain_gradient() -> None:
    method, batch = TwoHeads(), {name: torch.rand(6, 3 if name == "x" else 2) for name in ("x", "first", "second")}
    sum(method.losses(batch).values()).backward()
    plain = gradients(method)
    method.zero_grad(set_to_none=True)
    GradientHarmonizer("both", granularity="feature").backward(method, [batch], {}, lambda _: nullcontext(), 1.0, ALONE)
    torch.testing.assert_close(gradients(method), plain)
    opposed = batch | {"second": -2 * batch["first"]}
    harmony = GradientHarmonizer("both", granularity="feature")
    harmony.backward(method, [opposed], {}, lambda _: nullcontext(), 1.0, ALONE)
    assert gradients(method) == {}, "all are skipped: the optimizer step changes nothing"


def test_only_named_parameters_are_compared() -> None:
    """Of what both losses use, parameters outside the patterns keep the plain sum and do not decide."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def losses(self, batch: dict) -> dict[str, torch.Tensor]:
            one, other, against = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.tensor([5.0, 0.0])
            return {
                "one": self.backbone @ one + self.head @ against,
                "other": self.backbone @ other - self.head @ against,
            }

    method = Two()
    harmony = GradientHarmonizer("realign", shared=("backbone*",))
    harmony.backward(method, [{}], {}, lambda _: nullcontext(), 0.0, ALONE)
    assert harmony.cosines == pytest.approx([-(0.5**0.5)])
    torch.testing.assert_close(method.backbone.grad, torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(method.head.grad, torch.zeros(2))


def test_wrong_uses_are_one_sentence() -> None:
    with pytest.raises(UserError, match="feature"):
        GradientHarmonizer("random")

    class Whole(nn.Linear):
        def losses(self, batch: dict) -> dict[str, torch.Tensor]:
            return {"one": self.weight.sum(), "other": self.weight.sum()}

    harmony = GradientHarmonizer("both", granularity="feature")
    with pytest.raises(UserError, match="group"):
        harmony.backward(Whole(1, 1), [{}], {}, lambda _: nullcontext(), 0.0, ALONE)
