"""RoIAlign samples features in boxes."""

import torch

from polymodal.layers.roi_align import roi_align


def test_a_box_on_cells_is_their_mean():
    features = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]])
    found = roi_align(features, boxes, torch.tensor([1, 0]), output_size=2, sampling_ratio=1)
    torch.testing.assert_close(found[0], features[1, 2:4, 1:3])  # cell centers are the sampled points
    whole = roi_align(features, boxes, torch.tensor([1, 0]), output_size=1, sampling_ratio=4)
    torch.testing.assert_close(whole[1, 0, 0], features[0].mean((0, 1)))


def test_a_linear_ramp_is_read_at_the_center():
    # Features equal to the coordinates of their cells' centers: a box inside gives its own center.
    center = (torch.arange(8) + 0.5) / 8
    ramp = torch.stack(torch.meshgrid(center, center, indexing="ij"), -1)[None]
    boxes = torch.tensor([[0.2, 0.3, 0.6, 0.5], [0.41, 0.17, 0.47, 0.9]])
    found = roi_align(ramp, boxes, torch.tensor([0, 0]), sampling_ratio=2)[:, 0, 0]
    expected = torch.stack([(boxes[:, 1] + boxes[:, 3]) / 2, (boxes[:, 0] + boxes[:, 2]) / 2], -1)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 2)


def test_gradients_reach_the_features_in_the_box_alone():
    features = torch.zeros(1, 4, 4, 2, requires_grad=True)
    roi_align(features, torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([0])).sum().backward()
    assert features.grad[0, 3].abs().sum() == 0
    assert features.grad[0, :2, :2].abs().sum() > 0
