"""Augmentation of image batches: random resized crop, flip, color jitter, grayscale, blur. Values stay in 0-1."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.constraints import NonNegativeFloat, UnitInterval, UnitRange
from polymodal.modalities.text import UNKNOWN_LANGUAGE, Caption
from polymodal.rng import ExampleRNG


@dataclass(frozen=True)
class ImageAugmentation:
    """Augmentation probabilities and ranges; each image is augmented independently."""

    scale: UnitRange = (0.5, 1.0)
    """Minimum and maximum area of the random resized crop, as fractions of the image."""
    hflip_prob: UnitInterval = 0.0
    """Probability of a horizontal flip."""
    color_jitter_prob: NonNegativeFloat = 0.0
    """Probability of color jitter: brightness, contrast and saturation by up to 40 %, hue by up to 10 %."""
    grayscale_prob: UnitInterval = 0.0
    """Probability of conversion to grayscale."""
    blur_prob: UnitInterval = 0.0
    """Probability of a Gaussian blur with a standard deviation of 0.1 to 2 px of an image of 224 px, and in proportion
    of others (SimCLR, MoCo v2, SimSiam)."""


BLUR_SIGMA = (0.1 / 224, 2.0 / 224)  # of the side of the image
SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)

NONE = ImageAugmentation(scale=(1.0, 1.0))
WEAK = ImageAugmentation(hflip_prob=0.5)
STRONG = ImageAugmentation(scale=(0.08, 1.0), hflip_prob=0.5, color_jitter_prob=0.8, grayscale_prob=0.2, blur_prob=0.5)


def augment(
    image: Float[Tensor, "batch 3 size size"],
    augmentation: ImageAugmentation,
    example_rng: ExampleRNG,
    may_flip: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch 3 size size"]:
    """Augment a batch. may_flip: False where a flip would contradict the text ("left", "right")."""

    if augmentation == NONE:
        return image

    def chance(probability: float) -> Tensor:
        return example_rng.uniform() < probability

    flip = chance(augmentation.hflip_prob)
    if may_flip is not None:
        flip &= may_flip
    image = random_resized_crop(image, augmentation.scale, flip, example_rng)
    if augmentation.color_jitter_prob:
        image = torch.where(
            _each(chance(augmentation.color_jitter_prob)), color_jitter(image, 0.4, 0.1, example_rng), image
        )
    if augmentation.grayscale_prob:
        image = torch.where(_each(chance(augmentation.grayscale_prob)), to_grayscale(image).expand_as(image), image)
    if augmentation.blur_prob:
        image = torch.where(_each(chance(augmentation.blur_prob)), gaussian_blur(image, example_rng), image)
    return image


def may_flip(captions: Sequence[list[Caption]]) -> Bool[Tensor, " batch"]:
    """Return False for examples whose English captions say "left" or "right", so that a flip would contradict them."""
    return torch.tensor(
        [not any(_says_a_side(caption) for caption in example_captions) for example_captions in captions]
    )


def _says_a_side(caption: Caption) -> bool:
    english = caption.language.startswith("en") or caption.language == UNKNOWN_LANGUAGE
    return english and SIDE.search(caption.text) is not None


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def random_resized_crop(
    image: Float[Tensor, "batch 3 size size"],
    area: tuple[float, float],
    flip: Bool[Tensor, " batch"],
    example_rng: ExampleRNG,
) -> Float[Tensor, "batch 3 size size"]:
    """Crop a box of random area and aspect ratio (3/4 to 4/3) and resize it bilinearly (random resized crop)."""
    batch = len(image)
    fraction = example_rng.uniform(*area)
    ratio = example_rng.uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    width = (fraction * ratio).sqrt().clamp(max=1.0)
    height = (fraction / ratio).sqrt().clamp(max=1.0)
    center_x = (1 - width) * example_rng.uniform(-1, 1)
    center_y = (1 - height) * example_rng.uniform(-1, 1)
    transform = torch.zeros(batch, 2, 3)
    transform[:, 0, 0] = torch.where(flip, -width, width)
    transform[:, 0, 2] = center_x
    transform[:, 1, 1] = height
    transform[:, 1, 2] = center_y
    grid = F.affine_grid(transform, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def to_grayscale(image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 1 size size"]:
    """Return the luma of ITU-R BT.601."""
    return torch.einsum("bchw,c->bhw", image, torch.tensor([0.299, 0.587, 0.114]))[:, None]


def color_jitter(
    image: Float[Tensor, "batch 3 size size"], strength: float, hue: float, example_rng: ExampleRNG
) -> Float[Tensor, "batch 3 size size"]:
    """Jitter brightness, contrast and saturation by factors of 1 +- strength, hue by +- `hue` of a full turn."""
    brightness, contrast, saturation = (_each(example_rng.uniform(1 - strength, 1 + strength)) for _ in range(3))
    image = image * brightness
    mean = to_grayscale(image).mean(dim=(2, 3), keepdim=True)
    image = mean + (image - mean) * contrast
    luma = to_grayscale(image)
    image = luma + (image - luma) * saturation
    return torch.einsum("bdc,bchw->bdhw", _hue_rotation(hue, example_rng), image).clamp(0, 1)


def _hue_rotation(hue: float, example_rng: ExampleRNG) -> Float[Tensor, "batch 3 3"]:
    """Return rotations of colors about the gray axis (Rodrigues' formula), which leave grays unchanged."""
    angle = 2 * math.pi * example_rng.uniform(-hue, hue)[:, None, None]
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return angle.cos() * torch.eye(3) + (1 - angle.cos()) * axis + angle.sin() * cross


def gaussian_blur(
    image: Float[Tensor, "batch 3 size size"], example_rng: ExampleRNG
) -> Float[Tensor, "batch 3 size size"]:
    """Blur each image by a separable Gaussian, whose standard deviation is uniform in `BLUR_SIGMA` of the side."""
    batch, channels, size, _ = image.shape
    low, high = (size * fraction for fraction in BLUR_SIGMA)
    sigma = example_rng.uniform(low, high)
    reach = math.ceil(3 * high)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    x = image.reshape(1, batch * channels, size, size)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=batch * channels)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=batch * channels)
    return x.reshape(image.shape)


def random_crop(
    image: Float[Tensor, "batch 3 height width"], size: int, flip_prob: float, example_rng: ExampleRNG
) -> Float[Tensor, "batch 3 size size"]:
    """Cut a square of `size` pixels out of each image at random, without resizing, and flip it horizontally."""
    batch, _, height, width = image.shape
    top = (example_rng.uniform() * (height - size + 1)).long()
    left = (example_rng.uniform() * (width - size + 1)).long()
    flip = example_rng.uniform() < flip_prob
    rows = top[:, None] + torch.arange(size)
    columns = left[:, None] + torch.arange(size)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    return image[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def center_crop(image: Float[Tensor, "batch 3 height width"], size: int) -> Float[Tensor, "batch 3 size size"]:
    """Cut a square of `size` pixels out of the center, without resizing."""
    top, left = ((side - size) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def random_crops(
    image: Float[Tensor, "batch 3 height width"], size: int, count: int, seed: int = 0
) -> list[Float[Tensor, "batch 3 size size"]]:
    """Cut squares of `size` pixels out at places that are random and the same for all images; one, if it is all."""
    generator = torch.Generator().manual_seed(seed)
    room = [side - size + 1 for side in image.shape[-2:]]
    places = [[int(torch.randint(one, (), generator=generator)) for one in room] for _ in range(count)]
    some = places if max(room) > 1 else [[0, 0]]
    return [image[..., top : top + size, left : left + size] for top, left in some]
