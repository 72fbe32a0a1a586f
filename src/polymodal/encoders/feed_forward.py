"""Feed-forward image encoder: an MLP on flattened pixels, the weakest baseline of image classification."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder


class FeedForwardEncoder(Encoder):
    """Two hidden layers with ReLU on the pixels of an image; the pooled vector is also the only token."""

    def __init__(self, image_size: int, width: int):
        super().__init__()
        first, second = nn.Linear(3 * image_size**2, width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())

    def forward(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch 1 width"], Float[Tensor, "batch width"]]:
        pooled = self.layers(image)
        return pooled[:, None], pooled
