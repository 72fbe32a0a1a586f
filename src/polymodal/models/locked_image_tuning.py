"""Locked-image tuning (LiT, Zhai et al. 2022): an attention pooling head and a text encoder on a vision encoder.

The encoder is frozen by the stage that trains the rest; trained with it, the same losses are CLIP's. Head and towers
are those of AIMv2's released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from polymodal.encoders.encoder import Encoder
from polymodal.layers.attentive_probe import AttentiveProbe
from polymodal.layers.logit_scale import CLIP_MAX, LogitScale
from polymodal.modalities.padding import Padded
from polymodal.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from polymodal.types import Batch


class AttentionPoolHead(Encoder):
    """Attention pooling of a vision encoder's tokens by one learned query, to a vector of the same width."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.width = width
        self.probe = AttentiveProbe(width, width, num_heads, batch_norm=False, bias=True)

    def forward(self, tokens: Padded) -> tuple[Padded, Float[Tensor, "batch width"]]:
        return tokens, self.probe(tokens.values, tokens.mask)


class VisionEncoder(nn.Module):
    """A vision encoder alone, with features for probes. `image_encoder` returns `Padded` tokens and their mean."""

    def __init__(self, image_encoder: Encoder):
        super().__init__()
        self.image_encoder = image_encoder

    def features(self, batch: Batch) -> dict[str, Float[Tensor, "batch width"]]:
        """Return the mean of an image's tokens, for a linear probe."""
        return {"image": self.image_encoder(batch["image"])[-1]}

    def patch_features(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "batch patches width"], Bool[Tensor, "batch patches"]]:
        """Return all tokens of an image and their mask, for an attentive probe."""
        tokens = self.image_encoder(batch["image"])[0]
        return tokens.values, tokens.mask

    def load_pretrained_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of the vision encoder; all else begins anew."""
        self.image_encoder.load_pretrained_weights(weights)  # type: ignore[operator]


class ContrastiveEncoder(VisionEncoder):
    """A vision encoder with a pooling head, a text encoder and projections into one space (`lit`)."""

    def __init__(
        self, image_encoder: Encoder, head: AttentionPoolHead, text_encoder: Encoder, space: DualEncoderConfig
    ):
        super().__init__(image_encoder)
        self.lit = DualEncoderModel({"image": head, "text": text_encoder}, space, {"image": head.width})
        # The released code holds the logarithm of the scale between 0 and ln 100.
        self.lit.logit_scale = LogitScale(space.logit_scale_init, CLIP_MAX, 1.0)

    def encode_image(self, image: Any) -> Float[Tensor, "batch dim"]:
        """L2-normalized embeddings of images."""
        return self.lit.encode_modality("image", self.image_encoder(image)[0])

    def encode_text(self, text: Any) -> Float[Tensor, "batch dim"]:
        """L2-normalized embeddings of texts."""
        return self.lit.encode_modality("text", text)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """L2-normalized embeddings of the modalities that the batch has."""
        encode = {"image": self.encode_image, "text": self.encode_text}
        return {name: one(batch[name]) for name, one in encode.items() if name in batch}

    def zero_shot_probabilities(
        self, a: Float[Tensor, "rows dim"], classes: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, "rows classes"]:
        """Return a softmax over the classes, which are given by their embeddings."""
        return self.lit.zero_shot_probabilities(a, classes)

    def contrastive_losses(self, encoded: dict[str, Tensor]) -> dict[str, Tensor]:
        """contrastive: symmetric InfoNCE of the pairs."""
        return {"contrastive": self.lit.contrastive_losses(encoded)["image_text"]}

    def lit_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Contrast the pairs of a batch; whether the vision encoder learns is up to the stage."""
        return self.contrastive_losses(self.embed(batch))

    vars(lit_losses)["halves"] = ("embed", "contrastive_losses")  # what `training.grad_cache.two_halves` declares
