"""Pretrained image encoders instead of `ImageEncoder`: CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, ViT and AIMv2."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polymodal.encoders.encoder import Encoder
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.pretrained import (
    PretrainedConfig,
    PretrainedModel,
    configuration_from,
    folder_of,
    read_configuration,
    settings_of,
)
from polymodal.errors import UserError
from polymodal.modalities.image import patchify

Encoded = tuple[Float[Tensor, "batch patches width"], Float[Tensor, "batch width"]]


class ImageFamily(NamedTuple):
    """Transformers class of a model type, and conversion of its output to patch tokens and a pooled vector."""

    class_name: str
    encode: Callable[[Any, Tensor], Encoded]
    pooled_by: Literal["pooler", "first", "avg", ""]  # for exports: pooling of the class itself; "" for others


def _normed_class(model: Any, image: Tensor) -> Encoded:
    """Encode by CLIP, applying its final norm to all tokens, not to the CLS token alone."""
    tokens = model.post_layernorm(model(pixel_values=image).last_hidden_state)
    return tokens[:, 1:], tokens[:, 0]


def _class_token(model: Any, image: Tensor) -> Encoded:
    """Encode by a model with CLS token, and possibly register tokens (Darcet et al. 2024), which are dropped."""
    tokens = model(pixel_values=image).last_hidden_state
    return tokens[:, 1 + getattr(model.config, "num_register_tokens", 0) :], tokens[:, 0]


def _attention_pooled(model: Any, image: Tensor) -> Encoded:
    """Encode by SigLIP, which pools by attention (MAP head)."""
    encoded = model(pixel_values=image)
    return encoded.last_hidden_state, encoded.pooler_output


def _attention_pooled_patches(model: Any, image: Tensor) -> Encoded:
    """Encode by native-resolution SigLIP 2, whose patch values are ordered row, column, channel."""
    side = model.config.patch_size
    patches = patchify(image, side).unflatten(2, (3, side * side)).transpose(2, 3).flatten(2)
    grid = image.shape[2] // side
    shapes = torch.tensor([[grid, image.shape[3] // side]], device=image.device).expand(len(image), 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=image.device)
    encoded = model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    return encoded.last_hidden_state, encoded.pooler_output


def _mean(model: Any, image: Tensor) -> Encoded:
    """Encode by AIMv2 without its head."""
    tokens = model(pixel_values=image).last_hidden_state
    return tokens, tokens.mean(1)


def _head_or_mean(model: Any, image: Tensor) -> Encoded:
    return _attention_pooled(model, image) if model.config.use_head else _mean(model, image)


FAMILIES = {
    "clip_vision_model": ImageFamily("CLIPVisionModel", _normed_class, "pooler"),
    "siglip_vision_model": ImageFamily("SiglipVisionModel", _attention_pooled, "pooler"),
    "siglip2_vision_model": ImageFamily("Siglip2VisionModel", _attention_pooled_patches, ""),
    "dinov2": ImageFamily("Dinov2Model", _class_token, "first"),
    "dinov2_with_registers": ImageFamily("Dinov2WithRegistersModel", _class_token, "first"),
    "dinov3_vit": ImageFamily("DINOv3ViTModel", _class_token, "first"),
    "vit": ImageFamily("ViTModel", _class_token, "first"),
    "aimv2_vision_model": ImageFamily("Aimv2VisionModel", _head_or_mean, "pooler"),
}


@dataclass(frozen=True)
class PretrainedImageConfig(PretrainedConfig, ImageEncoderConfig):
    """Configuration of a pretrained image encoder; `read` fills in everything."""

    image_mean: tuple[float, ...] | None = None
    """Mean of red, green and blue (0-1) for normalization; None where the source gives none."""
    image_std: tuple[float, ...] | None = None
    """Standard deviation of red, green and blue."""

    @classmethod
    def read(cls, name: str) -> PretrainedImageConfig:
        """Read the encoder of a model on the hub or in a folder. Raises UserError when it has no supported image
        encoder."""
        configuration = read_configuration(name)
        tower = getattr(configuration, "vision_config", configuration)
        if tower.model_type not in FAMILIES:
            raise UserError(
                f"'{name}' ({configuration.model_type}) has no image tower; use one of: {', '.join(FAMILIES)}."
            )
        patch = _side(tower.patch_size)
        # SigLIP 2 gives the number of patches instead of the image size.
        size = _side(tower.image_size) if hasattr(tower, "image_size") else patch * math.isqrt(tower.num_patches)
        mean, std = image_mean_std(name) or (None, None)
        return cls(
            image_size=size,
            patch_size=patch,
            width=tower.hidden_size,
            depth=tower.num_hidden_layers,
            num_heads=tower.num_attention_heads,
            source=name,
            settings=settings_of(tower),
            image_mean=mean,
            image_std=std,
        )

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        return (self.image_mean, self.image_std) if self.image_mean and self.image_std else None

    def build(self) -> PretrainedImageEncoder:
        return PretrainedImageEncoder(self)


class PretrainedImageEncoder(Encoder, PretrainedModel):
    """Pretrained vision transformer; patch tokens in row-major order, and the pooled vector of its family."""

    def __init__(self, config: PretrainedImageConfig):
        family = FAMILIES[configuration_from(config.settings).model_type]
        super().__init__(config.source, config.settings, family.class_name)
        self.config = config
        self.encode = family.encode
        headless = getattr(self.model.config, "use_head", True) is False
        self.pooled_by = "avg" if headless else family.pooled_by

    def forward(self, image: Float[Tensor, "batch 3 size size"]) -> Encoded:
        """Encode images. image: normalized pixels. Returns patch tokens and the pooled vector."""
        return self.encode(self.model, image)


def _side(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def image_mean_std(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and standard deviation of the source's image processor, if it has one."""
    folder = folder_of(name)
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).is_file():
            settings = json.loads((folder / file).read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
            if "image_mean" in settings and "image_std" in settings:
                return tuple(settings["image_mean"]), tuple(settings["image_std"])
    return None
