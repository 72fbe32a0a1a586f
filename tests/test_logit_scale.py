"""The learned inverse temperature: its gradient, its bounds, its place in the state dict."""

import math

import pytest
import torch

from polymodal.errors import UserError
from polymodal.layers.logit_scale import LogitScale


def test_the_scale_is_the_exponential_of_the_parameter_and_has_its_gradient():
    scale = LogitScale()
    assert list(scale.state_dict()) == ["logit_scale"]
    assert scale().item() == pytest.approx(1 / 0.07)
    scale().backward()
    assert scale.logit_scale.grad.item() == pytest.approx(1 / 0.07)


def train(scale, steps, direction):
    optimizer = torch.optim.SGD(scale.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (direction * scale.logit_scale).backward()
        optimizer.step()
        scale.after_step()
    return scale().item()


def test_the_parameter_stops_at_its_bounds_and_comes_back():
    scale = LogitScale(10.0, max=100.0, min=2.0)
    assert train(scale, 5, -1) == pytest.approx(100)
    # It stands on the bound, not beyond it: the first step back moves the scale.
    assert train(scale, 1, 1) == pytest.approx(100 / math.e)
    assert train(scale, 9, 1) == pytest.approx(2)


def test_no_bound_holds_nothing():
    assert train(LogitScale(10.0, max=None), 5, -1) == pytest.approx(10 * math.exp(5))


@pytest.mark.parametrize(("init", "high", "low"), [(0.0, 100.0, None), (-1.0, None, None), (101.0, 100.0, None)])
def test_a_start_outside_the_bounds_is_an_error(init, high, low):
    with pytest.raises(UserError, match="initial logit scale"):
        LogitScale(init, high, low)


def test_a_start_on_a_bound_is_none():
    assert LogitScale(100.0)().item() == pytest.approx(100)


def test_a_frozen_scale_stays_as_it_was_loaded():
    scale = LogitScale(max=100.0)
    with torch.no_grad():
        scale.logit_scale.fill_(math.log(120.0))
    scale.requires_grad_(False).after_step()
    assert scale().item() == pytest.approx(120)
