"""Point clouds: float32, points x 6: position (x, y up, z), centered in the unit sphere, and color in 0-1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.modalities.modality import from_npy
from polymodal.rng import ExampleRNG

GRAY = 0.4  # color of points without color


@dataclass(frozen=True)
class Points:
    """Column of point clouds in NumPy's .npy format."""

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.binary()

    def decode(self, value: bytes) -> Float[np.ndarray, "points channels"]:
        """Decode x, y, z, and red, green, blue if present.

        Raises UnreadableExample for anything but a two-dimensional array.
        """
        return from_npy(value, 2).astype(np.float32)

    def describe(self, value: np.ndarray) -> str:
        return f"{len(value):,} points, {'colored' if value.shape[1] > 3 else 'without color'}"

    def plot(self, value: np.ndarray, axes: Any) -> None:
        """Plot from the front right and above; near points cover far ones."""
        turn, tilt = np.deg2rad(35), np.deg2rad(25)
        x = value[:, 0] * np.cos(turn) + value[:, 2] * np.sin(turn)
        depth = value[:, 2] * np.cos(turn) - value[:, 0] * np.sin(turn)
        y = value[:, 1] * np.cos(tilt) - depth * np.sin(tilt)
        near = np.argsort(depth * np.cos(tilt) + value[:, 1] * np.sin(tilt))
        color = value[near, 3:6] if value.shape[1] > 3 else depth[near]
        axes.set_facecolor("#e8eaed")
        axes.scatter(x[near], y[near], s=1.2, c=color, linewidths=0)
        axes.set_aspect("equal")
        axes.set(xticks=[], yticks=[])


def normalize_points(places: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
    """Center the centroid at the origin and scale the farthest point to distance 1."""
    centered = places - places.mean(axis=0)
    return centered / max(float(np.linalg.norm(centered, axis=1).max()), 1e-9)


def augment_points(
    points: Float[Tensor, "batch points channels"],
    example_rng: ExampleRNG,
    scale: tuple[float, float] = (2 / 3, 3 / 2),
    shift: float = 0.2,
    jitter: float = 0.0,
    rotate_perturbation: float = 0.0,
    dropout: float = 0.0,
    isotropic: bool = False,
) -> Float[Tensor, "batch points channels"]:
    """Rotate each cloud about the vertical axis, scale it along each axis and shift it; colors stay.

    scale, shift: uniform ranges per axis, as in PointNet++ and Point-BERT. jitter: standard deviation of noise per
    point. rotate_perturbation: standard deviation in radians of a rotation about each axis, clipped at three times
    that. dropout: maximum fraction of points replaced by the first point (point dropout); the fraction is uniform from
    0 to it. isotropic: whether one scale holds for all axes, as in ULIP.
    """
    if dropout:
        points = _dropped(points, example_rng, dropout)
    if rotate_perturbation:
        rotation = _small_rotations(example_rng, rotate_perturbation).to(points)
        points = torch.cat([points[..., :3] @ rotation.transpose(1, 2), points[..., 3:]], dim=-1)
    angle = example_rng.uniform(0, 2 * math.pi)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rotation = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).view(-1, 3, 3).to(points)
    factors = torch.stack([example_rng.uniform(*scale) for _ in range(1 if isotropic else 3)], dim=-1).to(points)
    offset = torch.stack([example_rng.uniform(-shift, shift) for _ in range(3)], dim=-1).to(points)
    xyz = points[..., :3] @ rotation.transpose(1, 2) * factors[:, None] + offset[:, None]
    if jitter:
        noise = np.stack([generator.standard_normal(xyz.shape[1:]) for generator in example_rng.generators])
        xyz = xyz + jitter * torch.from_numpy(noise).to(points)
    return torch.cat([xyz, points[..., 3:]], dim=-1)


def _dropped(points: Float[Tensor, "batch points channels"], example_rng: ExampleRNG, most: float) -> Tensor:
    fraction = example_rng.uniform(0, most)
    chances = torch.from_numpy(np.stack([generator.random(points.shape[1]) for generator in example_rng.generators]))
    return torch.where((chances < fraction[:, None]).to(points.device)[..., None], points[:, :1], points)


def _small_rotations(example_rng: ExampleRNG, deviation: float) -> Float[Tensor, "batch 3 3"]:
    """Return small rotations about the three axes, composed."""
    from scipy.spatial.transform import Rotation  # slow to import

    angles = np.stack([generator.standard_normal(3) for generator in example_rng.generators]).clip(-3, 3) * deviation
    matrices = Rotation.from_euler("xyz", angles).as_matrix()
    return torch.from_numpy(matrices)


def with_color(points: Float[np.ndarray, "points channels"]) -> Float[np.ndarray, "points 6"]:
    """Return points with colors, gray (0.4 as in ULIP-2) if they have none."""
    if points.shape[1] >= 6:
        return points[:, :6]
    return np.concatenate([points[:, :3], np.full((len(points), 3), GRAY, points.dtype)], axis=1)


def some_points(points: Float[np.ndarray, "points channels"], count: int) -> Float[np.ndarray, "count channels"]:
    """Select points at even index spacing; points repeat where there are fewer."""
    return points[np.linspace(0, len(points), count, endpoint=False).astype(np.int64)]


def any_points(
    points: Float[np.ndarray, "points channels"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "count channels"]:
    """Sample points at random; points repeat where there are fewer."""
    return points[rng.choice(len(points), count, replace=len(points) < count)]
