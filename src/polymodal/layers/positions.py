"""Position embeddings and attention biases: sinusoidal, rotary (RoPE), 2-D layout, XPath."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.errors import UserError


def sine_positions(length: int, width: int, like: Tensor) -> Float[Tensor, "length width"]:
    """Return sinusoidal position embeddings (Vaswani et al. 2017, section 3.5), with dtype and device of `like`."""
    position = torch.arange(length, device=like.device, dtype=torch.float32)
    return _sines(position, width).to(like.dtype)


def _sines(position: Float[Tensor, " length"], width: int, base: float = 10_000) -> Float[Tensor, "length width"]:
    rate = torch.exp(torch.arange(0, width, 2, device=position.device) * (-math.log(base) / width))
    angle = position[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def sine_positions_2d(grid: int, width: int, span: float | None = None) -> Float[Tensor, "patches width"]:
    """Return 2-D sine-cosine position embeddings of a square grid, row-major (MoCo v3, MAE).

    Half of the channels encode the row, half the column. width: a multiple of 4. span: coordinate of the last row and
    column, such as 2 pi in DETR; by default they are counted from 0.
    """
    if width % 4:
        raise UserError(f"A width of {width} does not divide into sines and cosines of rows and columns.")
    position = torch.arange(grid, dtype=torch.float32)
    along = _sines(position if span is None else (position + 1) * span / grid, width // 2)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


def sine_points(points: Float[Tensor, "*shape 2"], width: int, grid: int) -> Float[Tensor, "*shape width"]:
    """Return sine-cosine position embeddings of points of an image, row first, with wavelengths of its patch grid.

    points: x, y as fractions of the image. width: a multiple of 4. grid: patches along a side. Wavelengths are 2 pi to
    4 pi grid patches; of `sine_positions_2d`, with up to 20,000 pi, most channels hardly differ over a grid.
    """
    if width % 4:
        raise UserError(f"A width of {width} does not divide into sines and cosines of x and y.")
    position = points.flip(-1).flatten() * grid
    return _sines(position, width // 2, 2 * grid).reshape(*points.shape[:-1], width)


class SinePositions2D(nn.Module):
    """2-D sine-cosine position embeddings of a square grid, with coordinates up to 2 pi (DETR)."""

    values: Tensor

    def __init__(self, grid: int, width: int):
        """width: a multiple of 4."""
        super().__init__()
        self.register_buffer("values", sine_positions_2d(grid, width, 2 * math.pi), persistent=False)

    def forward(self) -> Float[Tensor, "patches width"]:
        return self.values


def rotary_angles(
    position: Int[Tensor, "batch length"], head_dim: int, theta: float, like: Tensor
) -> tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]]:
    """Return the cosines and sines with which `rotate` applies RoPE (Su et al. 2021, section 3.2).

    head_dim: even. theta: base of the wavelengths. The results have the dtype of `like`.
    """
    # Angle of pair i at position m: m * theta^(-2i / d).
    rate = theta ** (-torch.arange(0, head_dim, 2, device=position.device) / head_dim)
    angle = (position[:, None, :, None] * rate).repeat(1, 1, 1, 2)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotary_angles_2d(
    row: Int[Tensor, "batch length"], column: Int[Tensor, "batch length"], head_dim: int, theta: float, like: Tensor
) -> tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]]:
    """Return `rotary_angles` in 2-D: half of the channel pairs rotate with the row, half with the column (EVA-02,
    DINOv3).

    head_dim: a multiple of 4. Raises UserError otherwise.
    """
    if head_dim % 4:
        raise UserError(f"Heads of {head_dim} channels do not divide into pairs for rows and columns.")
    rate = theta ** (-torch.arange(0, head_dim // 2, 2, device=row.device) / (head_dim // 2))
    rotation = torch.cat([row[..., None] * rate, column[..., None] * rate], dim=-1)
    angle = rotation[:, None].repeat(1, 1, 1, 2)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(
    x: Float[Tensor, "batch heads length head_dim"],
    angles: tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]],
) -> Float[Tensor, "batch heads length head_dim"]:
    """Rotate pairs of channels (RoPE), so that inner products depend on relative positions alone.

    Channel i is paired with channel i + head_dim / 2, as in transformers' Llama.
    """
    # (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for each pair of channels.
    cosine, sine = angles
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class LayoutEmbedding(nn.Module):
    """Layout embedding of a box: left, top, right, bottom, width and height, embedded and concatenated.

    LayoutLMv3 (Huang et al. 2022, section 2.1): x coordinates share a table, y coordinates another; each part has a
    sixth of the width.
    """

    def __init__(self, width: int, scale: int = 1000):
        """Build the tables. width: even. scale: coordinates are integers from 0 to `scale`."""
        super().__init__()
        size = width // 6
        size -= (width // 2 - size) % 2
        coordinate = (width - 2 * size) // 4
        if width % 2 or size < 1:
            raise UserError(f"A width of {width} does not divide into six parts.")
        self.x_position_embeddings = nn.Embedding(scale + 1, coordinate)
        self.y_position_embeddings = nn.Embedding(scale + 1, coordinate)
        self.w_position_embeddings = nn.Embedding(scale + 1, size)
        self.h_position_embeddings = nn.Embedding(scale + 1, size)
        for embedding in self.children():
            nn.init.normal_(embedding.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, boxes: Int[Tensor, "... 4"]) -> Float[Tensor, "... width"]:
        left, top, right, bottom = boxes.unbind(-1)
        x, y = self.x_position_embeddings, self.y_position_embeddings
        width, height = self.w_position_embeddings(right - left), self.h_position_embeddings(bottom - top)
        return torch.cat([x(left), y(top), x(right), y(bottom), height, width], dim=-1)


def relative_bucket(distance: Int[Tensor, ...], buckets: int, furthest: int) -> Int[Tensor, ...]:
    """Return the relative position bucket of a signed distance (T5, Raffel et al. 2020, section 2.1).

    Half of the buckets serve each sign: exact near 0, logarithmic up to `furthest`.
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    logarithmic = (far.clamp(min=1) / exact).log() / math.log(furthest / exact) * (half - exact)
    bucket = torch.where(far < exact, far, (exact + logarithmic.long()).clamp(max=half - 1))
    return bucket + half * (distance > 0)


class SpatialBias(nn.Module):
    """Relative attention bias by 1-D text distance and 2-D page distance (spatial-aware attention).

    LayoutLMv3 (section 2.1, after LayoutLMv2, section 2.2): a learned scalar per head and bucket, shared by all blocks.
    Their code divides it by the square root of the head width, which learning absorbs.
    """

    bucket: Tensor

    def __init__(self, num_heads: int, scale: int = 1000):
        """Build the tables. scale: coordinates are integers from 0 to `scale`."""
        super().__init__()
        self.scale = scale
        self.rel_pos_bias = nn.Embedding(32, num_heads)
        self.rel_pos_x_bias = nn.Embedding(64, num_heads)
        self.rel_pos_y_bias = nn.Embedding(64, num_heads)
        self.register_buffer("bucket", relative_bucket(torch.arange(-scale, scale + 1), 64, 256), persistent=False)
        for embedding in (self.rel_pos_bias, self.rel_pos_x_bias, self.rel_pos_y_bias):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self, boxes: Int[Tensor, "batch length 4"], places: Int[Tensor, " length"] | None = None
    ) -> Float[Tensor, "batch heads length length"]:
        """Return the bias of each pair of tokens; x distances are between left sides, y distances between lower sides.

        places: position of each token in the sequence, by default consecutive.
        """
        position = torch.arange(boxes.shape[1], device=boxes.device) if places is None else places
        text = self.rel_pos_bias(relative_bucket(position[None, :] - position[:, None], 32, 128)).permute(2, 0, 1)
        across, down = (
            self.bucket[side[:, None, :] - side[:, :, None] + self.scale] for side in (boxes[..., 0], boxes[..., 3])
        )
        # Selected from one table of both distances, heads first, the gradient costs a fifth of two embeddings'.
        both = self.rel_pos_x_bias.weight.T[:, :, None] + self.rel_pos_y_bias.weight.T[:, None, :]
        pairs = (across * self.rel_pos_y_bias.num_embeddings + down).flatten()
        page = both.flatten(1).index_select(1, pairs).unflatten(1, across.shape)
        return page.transpose(0, 1) + text


class XPathEmbedding(nn.Module):
    """XPath embedding: tag and subscript embeddings of every step of a path, then an MLP.

    MarkupLM (Li et al. 2022, section 3.2). Each depth has its own embedding tables.
    """

    def __init__(self, width: int, tags: int, places: int, depth: int, part: int = 16):
        """Build the tables.

        tags, places: number of tag ids and of subscript ids, both with 0 for no step. depth: maximum number of steps.
        part: channels per step.
        """
        super().__init__()
        self.step: Tensor
        self.tag = nn.Embedding(depth * tags, part)
        self.place = nn.Embedding(depth * places, part)
        self.register_buffer("step", torch.arange(depth), persistent=False)
        self.sizes = tags, places
        self.fc1 = nn.Linear(depth * part, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        for embedding in (self.tag, self.place):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, path: Int[Tensor, "... depth 2"]) -> Float[Tensor, "... width"]:
        """Embed paths. path: tag id and subscript of every step, from the root."""
        tags, places = self.sizes
        # Each depth has its own tables: the id is offset by depth * size.
        steps = self.tag(path[..., 0] + self.step * tags) + self.place(path[..., 1] + self.step * places)
        return self.fc2(self.fc1(steps.flatten(-2)).relu())
