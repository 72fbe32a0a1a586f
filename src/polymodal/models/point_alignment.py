"""A point encoder in the space of a dual encoder of images and texts (ULIP, Xue et al. 2023).

Views of an object are images; the embedding of several is their normalized mean.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.encoders.points import PointEncoder, PointEncoderConfig
from polymodal.layers.logit_scale import LogitScale
from polymodal.layers.transformer import Packing, mean_pool
from polymodal.modalities.padding import Padded
from polymodal.models.dual_encoder import DualEncoderModel
from polymodal.types import Batch


class PointAlignment(DualEncoderModel):
    """Adds a point encoder with a linear projection and a temperature; the towers may stay frozen."""

    point_encoder: PointEncoder
    point_projection: nn.Linear
    point_logit_scale: LogitScale

    def add_points(self, points: PointEncoderConfig, embed_dim: int) -> None:
        """Add the point encoder. embed_dim: of the towers' space."""
        self.point_encoder = PointEncoder(points)
        self.point_projection = nn.Linear(points.pooled_width, embed_dim, bias=False)
        nn.init.normal_(self.point_projection.weight, std=embed_dim**-0.5)
        self.point_logit_scale = LogitScale()

    def encode_points(self, points: Float[Tensor, "batch points channels"]) -> Float[Tensor, "batch dim"]:
        """L2-normalized vectors of point clouds."""
        return F.normalize(self.point_projection(self.point_encoder.pooled(points)), dim=-1)

    def encode_views(self, views: Padded) -> Float[Tensor, "batch dim"]:
        """Normalized mean over the views of each object."""
        vectors = self.encode_image(views.values[views.mask])
        return F.normalize(mean_pool(vectors, Packing.of(views.mask)), dim=-1)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        vectors = super().embed(batch)
        if "points" in batch:
            vectors["points"] = self.encode_points(batch["points"])
        if "views" in batch:
            vectors["views"] = self.encode_views(batch["views"])
        return vectors
