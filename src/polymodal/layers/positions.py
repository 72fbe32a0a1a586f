"""Where a token stands, as a vector or as a bias of attention: in a sequence, on a page, in a tree."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.errors import UserError


def sine_positions(length: int, width: int, like: Tensor) -> Float[Tensor, "length width"]:
    """Sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5), in type and place of `like`."""
    place = torch.arange(length, device=like.device, dtype=torch.float32)
    return _sines(place, width).to(like.dtype)


def _sines(place: Float[Tensor, " length"], width: int) -> Float[Tensor, "length width"]:
    rate = torch.exp(torch.arange(0, width, 2, device=place.device) * (-math.log(10_000) / width))
    turned = place[:, None] * rate
    return torch.stack([turned.sin(), turned.cos()], dim=-1).flatten(1)


def sine_positions_2d(grid: int, width: int, span: float | None = None) -> Float[Tensor, "patches width"]:
    """For a square grid in reading order: half of the channels tell the row, half the column (MoCo v3, MAE).

    width: a multiple of 4. span: where the last row and column stand, such as 2 pi in DETR; by default they are counted
    from 0.
    """
    if width % 4:
        raise UserError(f"A width of {width} does not divide into sines and cosines of rows and columns.")
    place = torch.arange(grid, dtype=torch.float32)
    along = _sines(place if span is None else (place + 1) * span / grid, width // 2)
    rows, columns = along.repeat_interleave(grid, dim=0), along.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


def rotary_angles(
    position: Int[Tensor, "batch length"], head_dim: int, theta: float, like: Tensor
) -> tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]]:
    """Cosines and sines that `rotate` turns the channels of a head with (RoPE, Su et al. 2021, section 3.2).

    head_dim: channels of a head, even. theta: of the wave lengths. The results have the type of `like`.
    """
    rate = theta ** (-torch.arange(0, head_dim, 2, device=position.device) / head_dim)
    angle = (position[:, None, :, None] * rate).repeat(1, 1, 1, 2)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotary_angles_2d(
    row: Int[Tensor, "batch length"], column: Int[Tensor, "batch length"], head_dim: int, theta: float, like: Tensor
) -> tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]]:
    """As `rotary_angles`: half of the pairs of channels turn with the row, half with the column (EVA-02, DINOv3).

    head_dim: channels of a head, a multiple of 4. Raises ValueError for another one.
    """
    if head_dim % 4:
        raise UserError(f"Heads of {head_dim} channels do not divide into pairs for rows and columns.")
    rate = theta ** (-torch.arange(0, head_dim // 2, 2, device=row.device) / (head_dim // 2))
    turned = torch.cat([row[..., None] * rate, column[..., None] * rate], dim=-1)
    angle = turned[:, None].repeat(1, 1, 1, 2)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(
    x: Float[Tensor, "batch heads length head_dim"],
    angles: tuple[Float[Tensor, "batch 1 length head_dim"], Float[Tensor, "batch 1 length head_dim"]],
) -> Float[Tensor, "batch heads length head_dim"]:
    """Turn pairs of channels, so that inner products depend on the distance of two places alone.

    A channel of the first half makes a pair with that of the second half, as in transformers' Llama.
    """
    cosine, sine = angles
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class LayoutEmbedding(nn.Module):
    """A box on a page as a vector: left, top, right, bottom, width and height, embedded and put side by side.

    LayoutLMv3 (Huang et al. 2022, section 2.1): both axes share their embeddings, a sixth of the width for each part.
    """

    def __init__(self, width: int, scale: int = 1000):
        """width: even. scale: coordinates are 0 to `scale`."""
        super().__init__()
        size = width // 6
        size -= (width // 2 - size) % 2
        place = (width - 2 * size) // 4
        if width % 2 or size < 1:
            raise UserError(f"A width of {width} does not divide into six parts.")
        self.across = nn.Embedding(scale + 1, place)
        self.down = nn.Embedding(scale + 1, place)
        self.wide = nn.Embedding(scale + 1, size)
        self.high = nn.Embedding(scale + 1, size)
        for part in (self.across, self.down, self.wide, self.high):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, boxes: Int[Tensor, "... 4"]) -> Float[Tensor, "... width"]:
        left, top, right, bottom = boxes.unbind(-1)
        parts = [self.across(left), self.down(top), self.across(right), self.down(bottom)]
        return torch.cat([*parts, self.high(bottom - top), self.wide(right - left)], dim=-1)


def relative_bucket(distance: Int[Tensor, ...], buckets: int, furthest: int) -> Int[Tensor, ...]:
    """The bucket of a signed distance: half of them for each sign, exact near 0, logarithmic up to `furthest`.

    T5 (Raffel et al. 2020, section 2.1).
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    logarithmic = (far.clamp(min=1) / exact).log() / math.log(furthest / exact) * (half - exact)
    bucket = torch.where(far < exact, far, (exact + logarithmic.long()).clamp(max=half - 1))
    return bucket + half * (distance > 0)


class SpatialBias(nn.Module):
    """What attention adds for the distance of two tokens in the text, across the page and down the page.

    LayoutLMv3 (section 2.1, after LayoutLMv2, section 2.2): a learned number a head and bucket, the same in all blocks.
    Their code divides it by the root of the head width, which learning makes up for.
    """

    bucket: Tensor

    def __init__(self, num_heads: int, scale: int = 1000):
        """scale: coordinates are 0 to `scale`."""
        super().__init__()
        self.scale = scale
        self.text = nn.Embedding(32, num_heads)
        self.across = nn.Embedding(64, num_heads)
        self.down = nn.Embedding(64, num_heads)
        self.register_buffer("bucket", relative_bucket(torch.arange(-scale, scale + 1), 64, 256), persistent=False)
        for part in (self.text, self.across, self.down):
            nn.init.normal_(part.weight, std=0.02)

    def forward(
        self, boxes: Int[Tensor, "batch length 4"], places: Int[Tensor, " length"] | None = None
    ) -> Float[Tensor, "batch heads length length"]:
        """Distances across are those of left sides, down those of lower ones.

        places: of the tokens in their sequence, by default one after the other.
        """
        place = torch.arange(boxes.shape[1], device=boxes.device) if places is None else places
        text = self.text(relative_bucket(place[None, :] - place[:, None], 32, 128)).permute(2, 0, 1)
        across, down = (
            self.bucket[side[:, None, :] - side[:, :, None] + self.scale] for side in (boxes[..., 0], boxes[..., 3])
        )
        # Selected from one table of both distances, heads first, the gradient costs a fifth of two embeddings'.
        both = self.across.weight.T[:, :, None] + self.down.weight.T[:, None, :]
        pairs = (across * self.down.num_embeddings + down).flatten()
        page = both.flatten(1).index_select(1, pairs).unflatten(1, across.shape)
        return page.transpose(0, 1) + text


class XPathEmbedding(nn.Module):
    """An element's place in a tree as a vector: tag and number of every step, then two linear layers.

    MarkupLM (Li et al. 2022, section 3.2). Each depth has embeddings of its own.
    """

    def __init__(self, width: int, tags: int, places: int, depth: int, part: int = 16):
        """tags, places: how many numbers there are of each, 0 for no step. depth: steps. part: channels of a step."""
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
        """path: the tag and the place of every step, from the root."""
        tags, places = self.sizes
        steps = self.tag(path[..., 0] + self.step * tags) + self.place(path[..., 1] + self.step * places)
        return self.fc2(self.fc1(steps.flatten(-2)).relu())
