"""Multimodal autoregressive decoder: one causal sequence of the patches of an image, then the words of its caption.

Position i predicts patch i + 1 by regression, and the last patch the first word (AIMv2, Fini et al. 2024, section 3.1).
The decoder reads the features of an image encoder in place of pixels and is thrown away after pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import PositiveInt
from polymodal.encoders.prefix_image import Images, PrefixImageEncoder, patches_of
from polymodal.layers.decoder import Decoder, KVCache, ModalityExperts, SwiGLU
from polymodal.layers.decoding import Decoding
from polymodal.layers.generation import generate_tokens
from polymodal.layers.swiglu_transformer import NORM_EPS
from polymodal.modalities.padding import Padded
from polymodal.modalities.text import Tokens
from polymodal.models.locked_image_tuning import VisionEncoder
from polymodal.objectives.masked_modeling import normalize_patches
from polymodal.types import Batch

FLAT = 1e-3  # range of the normalized values of each color in a patch that counts as flat


@dataclass(frozen=True)
class MultimodalDecoderConfig:
    """A causal decoder over patches and words."""

    width: PositiveInt = 128
    """Channels of every token."""
    depth: PositiveInt = 2
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of a block."""
    mlp_dim: PositiveInt = 352
    """Inner width of the SwiGLU MLPs."""


class DecodedStates(NamedTuple):
    """image: states of the patches; that of patch i predicts patch i + 1. text: the state that predicts each token."""

    image: Float[Tensor, "batch patches width"]
    text: Float[Tensor, "batch length width"]


class MultimodalDecoder(nn.Module):
    """Projection of image features, word embeddings, causal blocks, and linear heads of pixels and of words."""

    def __init__(self, config: MultimodalDecoderConfig, image_width: int, patch_dim: int, vocab_size: int):
        """image_width: of the image encoder's tokens. patch_dim: values of a patch."""
        super().__init__()
        width = config.width
        self.image_projection = nn.Linear(image_width, width)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.transformer = Decoder(
            width,
            config.depth,
            config.num_heads,
            config.num_heads,
            lambda: ModalityExperts({"shared": SwiGLU(width, config.mlp_dim)}),
            norm_eps=NORM_EPS,
        )
        self.pixel_head = nn.Linear(width, patch_dim)
        self.text_head = nn.Linear(width, vocab_size, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text_head.weight, std=0.02)

    def forward(self, image: Padded, text: Tokens) -> DecodedStates:
        """Decode. image: tokens of the image encoder. text: without a start token; the end token is predicted, too."""
        x = torch.cat([self.image_projection(image.values), self.token_embedding(text.ids)], dim=1)
        states = self._states(x, torch.cat([image.mask, text.mask], dim=1))
        patches = image.values.shape[1]
        last = states[torch.arange(len(x), device=x.device), image.lengths - 1]
        return DecodedStates(states[:, :patches], torch.cat([last[:, None], states[:, patches:-1]], dim=1))

    @torch.no_grad()
    def generate_text(
        self, image: Padded, end: int, decoding: Decoding, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Return captions, without the end token."""
        rows, patches = image.mask.shape
        cache = self.transformer.cache(rows, patches + decoding.max_new_tokens)
        states = self._states(self.image_projection(image.values), image.mask, cache)
        last = states[torch.arange(rows, device=states.device), image.lengths - 1]
        session = _Session(self, cache, image.lengths - 1)
        return generate_tokens(self.text_head(last), session.step, session.select, end, decoding, generator)

    def _states(self, x: Tensor, mask: Bool[Tensor, "batch length"], cache: KVCache | None = None) -> Tensor:
        position = (mask.cumsum(1) - 1).clamp(min=0)
        return self.transformer(x, position, mask.long(), cache=cache)


class _Session:
    """The cache of images and of the words so far."""

    def __init__(self, decoder: MultimodalDecoder, cache: KVCache, position: Tensor):
        self.decoder, self.cache, self.position = decoder, cache, position

    def step(self, token: Tensor) -> Tensor:
        self.position = self.position + 1
        x, one = self.decoder.token_embedding(token[:, None]), torch.ones_like(token[:, None])
        return self.decoder.text_head(self.decoder.transformer(x, self.position[:, None], one, cache=self.cache)[:, 0])

    def select(self, rows: Tensor) -> None:
        self.cache, self.position = self.cache.select(rows), self.position[rows]


class ImageWriter(VisionEncoder):
    """A vision encoder with prefix attention, and a decoder of its patches and of captions."""

    def __init__(self, image_encoder: PrefixImageEncoder, decoder: MultimodalDecoder, end: int, **tuning: Any):
        """end: the end token. tuning: of further base classes."""
        super().__init__(image_encoder, **tuning)
        self.decoder, self.end = decoder, end

    def patches(self, image: Images) -> Padded:
        """Return the normalized pixels of all patches."""
        return patches_of(image, self.image_encoder.config.patch_size)  # type: ignore[union-attr, arg-type]

    def predicted_patches(self, image: Images, prefix: Int[Tensor, " batch"]) -> Bool[Tensor, "batch predicted"]:
        """Return True for patches behind the prefix, which are predicted; the first patch never is and has no entry."""
        mask = self.patches(image).mask
        number = torch.arange(1, mask.shape[1], device=mask.device)  # of a patch, from 0
        return (number >= prefix[:, None]) & mask[:, 1:]

    def patch_errors(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"]]:
        """Return the squared error of the second half of the patches, given the first as the prefix.

        Then which patches are predicted, and which of these are flat, of one color in all of their pixels.
        """
        patches = self.patches(batch["image"])
        prefix = (patches.lengths // 2).clamp(min=1)
        features = self.image_encoder(batch["image"], prefix)[0]
        nothing = Tokens(prefix.new_full((len(prefix), 1), self.end), torch.ones_like(prefix))
        target = normalize_patches(patches.values[:, 1:])
        error = self.decoder.pixel_head(self.decoder(features, nothing).image[:, :-1]) - target
        predicted = self.predicted_patches(batch["image"], prefix)
        by_color = patches.values[:, 1:].unflatten(2, (3, -1))
        return error.square().mean(-1), predicted, (by_color.amax(3) - by_color.amin(3)).amax(2) < FLAT

    def generate_text(
        self, batch: Batch, decoding: Decoding | None = None, generator: torch.Generator | None = None
    ) -> list[list[int]]:
        """Write captions of images; a question is not read."""
        features = self.image_encoder(batch["image"])[0]
        return self.decoder.generate_text(features, self.end, decoding or Decoding(), generator)

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Return the log-probability of each `answer` as the caption of its `image`."""
        text = batch["answer"].without_start()
        states = self.decoder(self.image_encoder(batch["image"])[0], text).text
        nats = F.cross_entropy(self.decoder.text_head(states).float().transpose(1, 2), text.ids, reduction="none")
        return -(nats * text.mask).sum(1)
