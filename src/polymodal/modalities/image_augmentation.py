"""Random changes of whole batches of pictures: crop, flip, colour, blur. Values stay on the scale 0-1."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from polymodal.draws import Draws
from polymodal.modalities.text import UNKNOWN_LANGUAGE, Caption
from polymodal.ranges import NotNegative, Share, Shares


@dataclass(frozen=True)
class ImageAugmentation:
    """What may happen to a picture; probabilities are drawn for each picture on its own."""

    crop: Shares = (0.5, 1.0)
    """Smallest and largest share of the area that is kept."""
    flip: Share = 0.0
    """Probability of a mirror image; left and right change places."""
    jitter: NotNegative = 0.0
    """Probability of changing brightness, contrast and saturation by up to 40 % and hue by up to 10 %."""
    grey: Share = 0.0
    """Probability of losing all colour."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of up to 2 % of the side."""


SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)

NONE = ImageAugmentation(crop=(1.0, 1.0))
WEAK = ImageAugmentation(flip=0.5)
STRONG = ImageAugmentation(crop=(0.08, 1.0), flip=0.5, jitter=0.8, grey=0.2, blur=0.5)


def augment(
    image: Float[Tensor, "batch 3 size size"],
    augmentation: ImageAugmentation,
    draws: Draws,
    may_flip: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch 3 size size"]:
    """A new batch, changed at random. may_flip: False where a mirror image would be wrong (texts that say "left")."""

    if augmentation == NONE:
        return image

    def chance(probability: float) -> Tensor:
        return draws.uniform() < probability

    flip = chance(augmentation.flip)
    if may_flip is not None:
        flip &= may_flip
    image = random_resized_crop(image, augmentation.crop, flip, draws)
    if augmentation.jitter:
        image = torch.where(_each(chance(augmentation.jitter)), colour_jitter(image, 0.4, 0.1, draws), image)
    if augmentation.grey:
        image = torch.where(_each(chance(augmentation.grey)), grey(image).expand_as(image), image)
    if augmentation.blur:
        image = torch.where(_each(chance(augmentation.blur)), gaussian_blur(image, 0.02, draws), image)
    return image


def may_flip(captions: Sequence[list[Caption]]) -> Bool[Tensor, " batch"]:
    """False where one of an example's English captions says "left" or "right": of its mirror image that is a lie."""
    return torch.tensor([not any(_says_a_side(caption) for caption in of_one) for of_one in captions])


def _says_a_side(caption: Caption) -> bool:
    english = caption.language.startswith("en") or caption.language == UNKNOWN_LANGUAGE
    return english and SIDE.search(caption.text) is not None


def _each(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def random_resized_crop(
    image: Float[Tensor, "batch 3 size size"],
    area: tuple[float, float],
    flip: Bool[Tensor, " batch"],
    draws: Draws,
) -> Float[Tensor, "batch 3 size size"]:
    """A box of random place, area and shape (side ratio 3/4 to 4/3), stretched to the full size, bilinear."""
    batch = len(image)
    share = draws.uniform(*area)
    ratio = draws.uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    width = (share * ratio).sqrt().clamp(max=1.0)
    height = (share / ratio).sqrt().clamp(max=1.0)
    centre_x = (1 - width) * draws.uniform(-1, 1)
    centre_y = (1 - height) * draws.uniform(-1, 1)
    transform = torch.zeros(batch, 2, 3)
    transform[:, 0, 0] = torch.where(flip, -width, width)
    transform[:, 0, 2] = centre_x
    transform[:, 1, 1] = height
    transform[:, 1, 2] = centre_y
    grid = F.affine_grid(transform, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch 1 size size"]:
    """Luma of ITU-R BT.601."""
    return torch.einsum("bchw,c->bhw", image, torch.tensor([0.299, 0.587, 0.114]))[:, None]


def colour_jitter(
    image: Float[Tensor, "batch 3 size size"], strength: float, hue: float, draws: Draws
) -> Float[Tensor, "batch 3 size size"]:
    """Brightness, contrast and saturation by factors in 1 +- strength; hue by +- `hue` of a full turn."""
    brightness, contrast, saturation = (_each(draws.uniform(1 - strength, 1 + strength)) for _ in range(3))
    image = image * brightness
    mean = grey(image).mean(dim=(2, 3), keepdim=True)
    image = mean + (image - mean) * contrast
    luma = grey(image)
    image = luma + (image - luma) * saturation
    return torch.einsum("bdc,bchw->bdhw", _hue_rotation(hue, draws), image).clamp(0, 1)


def _hue_rotation(hue: float, draws: Draws) -> Float[Tensor, "batch 3 3"]:
    """Turns colours about the grey axis (Rodrigues' formula): white, grey and black stay as they are."""
    angle = 2 * math.pi * draws.uniform(-hue, hue)[:, None, None]
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return angle.cos() * torch.eye(3) + (1 - angle.cos()) * axis + angle.sin() * cross


def gaussian_blur(
    image: Float[Tensor, "batch 3 size size"], largest: float, draws: Draws
) -> Float[Tensor, "batch 3 size size"]:
    """A separable Gaussian for each picture; standard deviation 0.1 px up to `largest` of the side."""
    batch, channels, size, _ = image.shape
    sigma = draws.uniform(0.1, max(0.2, largest * size))
    reach = max(1, round(2 * largest * size))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    x = image.reshape(1, batch * channels, size, size)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None], groups=batch * channels)
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[..., None], groups=batch * channels)
    return x.reshape(image.shape)
