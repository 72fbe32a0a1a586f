"""Momentum copies against plain averages, their modes and state; the queue against a list."""

import copy
import math

import pytest
import torch
from torch import nn

from polymodal.errors import UserError
from polymodal.layers.momentum_encoder import NO_LABEL, FeatureQueue, MomentumEncoder, cosine_momentum


class Method(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.projection = nn.Linear(4, 2)
        self.momentum = MomentumEncoder({"encoder": self.encoder, "projection": self.projection}, **options)

    def targets(self, x):
        with self.momentum.momentum_forward():
            return self.momentum["projection"](self.momentum["encoder"](x))


def change(method):
    with torch.no_grad():
        for parameter in [*method.encoder.parameters(), *method.projection.parameters()]:
            parameter.add_(torch.randn_like(parameter))


def test_weights_are_the_moving_average_of_the_modules():
    torch.manual_seed(0)
    method = Method()
    expected = None
    for _ in range(4):
        change(method)
        weight = method.projection.weight.detach().clone()
        expected = weight if expected is None else 0.9 * expected + 0.1 * weight  # the first update copies
        method.momentum.update(0.9)
        torch.testing.assert_close(method.momentum["projection"].weight, expected)
    before = copy.deepcopy(method.momentum.state_dict())
    method.momentum.update(1.0)
    assert all(torch.equal(before[name], value) for name, value in method.momentum.state_dict().items())
    method.momentum.update(0.0)
    torch.testing.assert_close(method.momentum["projection"].weight, method.projection.weight)


def test_copies_get_no_gradient_are_in_no_optimizer_and_once_in_the_state_dict():
    method = Method()
    names = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert names
    assert not any(name.startswith("momentum.") for name in names)
    assert not method.targets(torch.randn(5, 3)).requires_grad
    state = method.state_dict()
    assert {name.removeprefix("momentum.") for name in state if name.startswith("momentum.")} == {
        *(name for name in state if not name.startswith("momentum.")),
        "initialized",
    }
    change(method)
    method.momentum.update(0.5)
    other = Method()
    other.load_state_dict(method.state_dict())
    other.train()
    x = torch.randn(5, 3)
    torch.testing.assert_close(other.targets(x), method.targets(x))


def test_the_first_forward_pass_sees_weights_that_were_loaded_since():
    method = Method().eval()
    change(method)
    x = torch.randn(5, 3)
    torch.testing.assert_close(method.targets(x), method.projection(method.encoder(x)))


def test_a_copy_of_a_method_follows_the_copys_modules():
    method = Method()
    twin = copy.deepcopy(method)
    assert twin.momentum.online["encoder"] is twin.encoder
    method.momentum.initialize()
    assert not twin.momentum.initialized


def test_copies_evaluate_unless_they_are_to_run_as_their_modules():
    x = torch.randn(64, 3)
    method = Method().train()
    assert not any(module.training for module in method.momentum.modules())
    assert torch.equal(method.targets(x), method.targets(x))
    training = Method(train_mode=True).train()
    assert not torch.equal(training.targets(x), training.targets(x))  # dropout
    assert not any(module.training for module in training.momentum.modules())
    assert torch.equal(training.eval().targets(x), training.targets(x))
    training.train()
    training.encoder[2].eval()  # a frozen part evaluates in the copy, too
    assert torch.equal(training.targets(x), training.targets(x))


@pytest.mark.parametrize("buffers", ["copy", "average", "keep"])
def test_statistics_of_batch_norm_are_copied_averaged_or_the_copies_own(buffers):
    torch.manual_seed(0)
    method = Method(buffers=buffers, train_mode=buffers == "keep").train()
    method.momentum.update(0.9)
    before = method.momentum["encoder"][1].running_mean.clone()
    method.encoder(10 + torch.randn(64, 3))
    online = method.encoder[1].running_mean
    method.momentum.update(0.9)
    expected = {"copy": online, "average": 0.9 * before + 0.1 * online, "keep": before}[buffers]
    torch.testing.assert_close(method.momentum["encoder"][1].running_mean, expected)
    counted = method.momentum["encoder"][1].num_batches_tracked
    assert counted == (0 if buffers == "keep" else 1)
    own = Method(buffers="keep", train_mode=True).train()
    own.targets(torch.randn(64, 3))
    assert own.momentum["encoder"][1].num_batches_tracked == 1
    with pytest.raises(UserError, match="train_mode=True"):
        Method(buffers="keep")


def test_the_momentum_rises_from_its_base_to_one():
    assert cosine_momentum(0.0, 0.99) == pytest.approx(0.99)
    assert cosine_momentum(0.5, 0.99) == pytest.approx(0.995)
    assert cosine_momentum(1.0, 0.99) == 1.0
    assert cosine_momentum(0.25, 0.9) == pytest.approx(1 - 0.1 * (math.sqrt(0.5) + 1) / 2)


def rows(first, count):
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(-1, 2)


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 11, 30])
def test_the_queue_has_the_newest_features_and_their_labels(batch):
    queue, everything = FeatureQueue(11, 2), []
    assert queue.features.shape == (0, 2)
    for step in range(9):
        queue.enqueue(rows(step * batch, batch), torch.arange(step * batch, (step + 1) * batch))
        everything += range(step * batch, (step + 1) * batch)
        newest = everything[-11:]
        assert len(queue) == len(newest)
        assert sorted(queue.features[:, 0].tolist()) == newest
        assert torch.equal(queue.features[:, 1].double(), queue.labels)


def test_a_queue_that_goes_on_is_the_queue_that_it_was():
    whole, first, then = FeatureQueue(5, 2), FeatureQueue(5, 2), FeatureQueue(5, 2)
    for step in range(4):
        whole.enqueue(rows(3 * step, 3))
        (first if step < 2 else then).enqueue(rows(3 * step, 3))
        if step == 1:
            then.load_state_dict(first.state_dict())
    assert torch.equal(then.features, whole.features)
    assert then.labels.tolist() == [NO_LABEL] * 5
    assert not list(whole.parameters())


def test_a_loss_with_queued_features_has_its_gradient_after_they_were_replaced():
    queue = FeatureQueue(4, 2)
    queue.enqueue(rows(0, 4))
    queries = torch.randn(3, 2, requires_grad=True)
    features = queue.features
    loss = (queries @ features.T).sum()
    queue.enqueue(queries)
    loss.backward()
    torch.testing.assert_close(queries.grad, rows(0, 4).sum(0).expand(3, 2))
    assert not queue.features.requires_grad


def test_an_empty_queue_is_an_error():
    with pytest.raises(UserError, match="at least 1"):
        FeatureQueue(0, 2)
