"""A dual encoder trained by polymodal, for transformers: AutoModel.from_pretrained(FOLDER, trust_remote_code=True).

This file and that of its encoders are written beside the exported weights and need only torch and transformers. Modules
have the names of polymodal's, so the weights load directly; sequences are padded here where polymodal packs them, with
equal results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .modeling_polymodal_encoders import ImageEncoder, Pretrained, TextEncoder, pool, tower


class PolymodalConfig(PretrainedConfig):
    """Configuration.

    image, text: sizes of each encoder, or `pretrained`: settings of a transformers model and its class name. dim: of
    the joint embedding space. bias: whether the logits have a bias, as in SigLIP. head: whether a non-linear layer
    comes before the image projection, as in SPARC; residual_head: whether its output is added to its input.
    """

    model_type = "polymodal_dual_encoder"

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        dim: int = 128,
        bias: bool = False,
        head: bool = False,
        residual_head: bool = False,
        **kwargs: Any,
    ):
        self.image, self.text, self.dim, self.bias = image or {}, text or {}, dim, bias
        self.head, self.residual_head = head, residual_head
        super().__init__(**kwargs)


@dataclass
class DualEncoderOutput(ModelOutput):
    """Output. image_embeds, text_embeds: L2-normalized [batch, dim]. logits_per_image: scaled similarities."""

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class PolymodalDualEncoder(PreTrainedModel):
    """Dual encoder of images and texts."""

    config_class = PolymodalConfig

    def __init__(self, config: PolymodalConfig):
        super().__init__(config)
        sizes = {"image": dict(config.image), "text": dict(config.text)}
        self.pooled_by = {name: of.pop("pooled_by") for name, of in sizes.items()}
        widths = {name: of.pop("pooled_width") for name, of in sizes.items()}
        self.padded_to = sizes["text"].pop("padded_to", None)
        self.image_encoder = tower(ImageEncoder, sizes["image"])
        self.text_encoder = tower(TextEncoder, sizes["text"])
        width = widths["image"]
        self.image_head = nn.Sequential(nn.Linear(width, width), nn.GELU()) if config.head else nn.Identity()
        self.image_projection = nn.Linear(widths["image"], config.dim, bias=False)
        self.text_projection = nn.Linear(widths["text"], config.dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if config.bias:
            self.logit_bias = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Skip initialization: all weights are in the file."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Return L2-normalized image embeddings."""
        if isinstance(self.image_encoder, Pretrained):
            encoded = self.image_encoder.model(pixel_values=pixel_values)
            tokens = encoded.last_hidden_state
            pooled = {
                "pooler": lambda: encoded.pooler_output,
                "first": lambda: tokens[:, 0],
                "avg": lambda: tokens.mean(1),
            }[self.pooled_by["image"]]()
        else:
            pooled = self.image_encoder(pixel_values)
        head = self.image_head(pooled)
        return F.normalize(self.image_projection(pooled + head if self.config.residual_head else head), dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return L2-normalized text embeddings. attention_mask: 0 for padding, which is on the right."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        by = self.pooled_by["text"]
        if not isinstance(self.text_encoder, Pretrained):
            pooled = pool(self.text_encoder(input_ids, attention_mask), attention_mask, by)
        elif self.padded_to is not None:  # SigLIP attends to padding, up to its full length
            padding = self.text_encoder.model.config.pad_token_id
            ids = input_ids.masked_fill(attention_mask == 0, padding)
            ids = F.pad(ids, (0, self.padded_to - ids.shape[1]), value=padding)
            pooled = self.text_encoder.model(input_ids=ids).pooler_output
        else:
            encoded = self.text_encoder.model(input_ids=input_ids, attention_mask=attention_mask)
            pooled = encoded.pooler_output if by == "pooler" else pool(encoded.last_hidden_state, attention_mask, by)
        return F.normalize(self.text_projection(pooled), dim=-1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> DualEncoderOutput:
        image = None if pixel_values is None else self.get_image_features(pixel_values)
        text = None if input_ids is None else self.get_text_features(input_ids, attention_mask)
        if image is None or text is None:
            return DualEncoderOutput(image_embeds=image, text_embeds=text)
        logits = self.logit_scale.exp() * image @ text.T
        if self.config.bias:
            logits = logits + self.logit_bias
        return DualEncoderOutput(logits, logits.T, image, text)


class PolymodalTextConfig(PretrainedConfig):
    """Configuration. sizes: of polymodal's text transformer."""

    model_type = "polymodal_text"

    def __init__(self, sizes: dict[str, Any] | None = None, **kwargs: Any):
        self.sizes = sizes or {}
        self.hidden_size = self.sizes.get("width")
        super().__init__(**kwargs)


class PolymodalTextModel(PreTrainedModel):
    """Polymodal's text transformer alone, as sentence-transformers needs it: all tokens in `last_hidden_state`."""

    config_class = PolymodalTextConfig

    def __init__(self, config: PolymodalTextConfig):
        super().__init__(config)
        self.text_encoder = TextEncoder(**config.sizes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Skip initialization: all weights are in the file."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.text_encoder(input_ids, mask))
