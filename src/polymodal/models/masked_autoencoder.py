"""Masked autoencoder (MAE, He et al. 2022): the encoder sees visible patches only, a light decoder predicts the rest.

Any grid of patches: images, spectrograms (Audio-MAE), videos (VideoMAE), volumes (BM-MAE), series. Encoder and decoder
are modules of their own, so that methods of several modalities can join the visible tokens between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import DecayRate, NonNegativeInt, PositiveInt
from polymodal.data.masks import restore_indices, visible_indices
from polymodal.layers.patches import grid_of, patchify_nd, sine_positions_nd, unpatchify_nd
from polymodal.layers.transformer import Transformer
from polymodal.objectives.masked_modeling import masked_patch_loss, normalize_patches, patch_mean_std
from polymodal.types import Batch


@dataclass(frozen=True)
class MaskedAutoencoderConfig:
    """A masked autoencoder."""

    input_size: tuple[PositiveInt, ...] = (32, 32)
    """Sides of the input: height and width; frames, height and width; mel bins and frames ..."""
    patch_size: tuple[PositiveInt, ...] = (8, 8)
    """Sides of a patch along the same axes; must divide them."""
    num_channels: PositiveInt = 3
    """Channels of the input, such as 3 of RGB and 1 of a spectrogram."""
    width: PositiveInt = 64
    """Channels of every encoder token."""
    depth: NonNegativeInt = 2
    """Encoder blocks."""
    num_heads: PositiveInt = 4
    """Attention heads of an encoder block."""
    decoder_width: PositiveInt = 32
    """Channels of every decoder token."""
    decoder_depth: NonNegativeInt = 1
    """Decoder blocks."""
    decoder_num_heads: PositiveInt = 4
    """Attention heads of a decoder block."""
    mask_ratio: DecayRate = 0.75
    """Fraction of the patches that are masked, where a batch has no mask of its own."""
    pos_embed: Literal["sine", "learned"] = "sine"
    """Position embeddings of encoder and decoder: fixed sines and cosines, or learned vectors."""
    norm_pix_loss: bool = True
    """Whether the targets are the values of a patch normalized by its own mean and variance (section 3)."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along every axis."""
        return grid_of(self.input_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        """Values of a patch."""
        return self.num_channels * math.prod(self.patch_size)


class MaskedAutoencoderOutput(NamedTuple):
    """prediction: of all patches. mask: True for masked ones. tokens: class token and visible patches, encoded."""

    prediction: Float[Tensor, "batch patches values"]
    mask: Bool[Tensor, "batch patches"]
    tokens: Float[Tensor, "batch tokens width"]


def random_patch_mask(noise: Float[Tensor, "batch patches"], mask_ratio: float) -> Bool[Tensor, "batch patches"]:
    """Mask all patches but those of the lowest noise: int(patches * (1 - mask_ratio)) of every example stay visible.

    MAE, section 3 and released code. Masks in blocks, tubes or bands are made with the batch.
    """
    visible = int(noise.shape[1] * (1 - mask_ratio))
    return noise.argsort(dim=1).argsort(dim=1) >= visible


class MaskedEncoder(nn.Module):
    """A vision transformer over the visible patches, with a class token (MAE, section 3)."""

    pos_embed: Tensor

    def __init__(self, config: MaskedAutoencoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_dim, config.width)
        self.class_token = nn.Parameter(0.02 * torch.randn(config.width))
        _add_positions(self, config, config.width)
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.norm = nn.LayerNorm(config.width)
        nn.init.xavier_uniform_(self.patch_embedding.weight)  # as the official code does
        nn.init.zeros_(self.patch_embedding.bias)

    def patch_tokens(self, values: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch patches width"]:
        """Patch embeddings with their positions, before any is masked."""
        return self.patch_embedding(patchify_nd(values, self.config.patch_size)) + self.pos_embed[1:]

    def forward(
        self,
        values: Float[Tensor, "batch channels *size"],
        ids_keep: Int[Tensor, "batch visible"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Class token, then the visible patches in the order of `ids_keep`; all patches without it."""
        x = self.patch_tokens(values)
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[2]))
        class_token = (self.class_token + self.pos_embed[0]).expand(len(x), 1, -1)
        return self.norm(self.transformer(torch.cat([class_token, x], dim=1)))

    def pooled(self, values: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch width"]:
        """The mean of all patch tokens, for linear probes and fine-tuning (MAE, appendix A.1)."""
        return self(values)[:, 1:].mean(1)


class MaskedDecoder(nn.Module):
    """Mask tokens in the places of masked patches, positions for all, a light transformer, and a linear head."""

    pos_embed: Tensor

    def __init__(self, config: MaskedAutoencoderConfig, width: int | None = None):
        """width: of the tokens that come in, by default the encoder's."""
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(width or config.width, config.decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(config.decoder_width))
        _add_positions(self, config, config.decoder_width)
        self.transformer = Transformer(config.decoder_width, config.decoder_depth, config.decoder_num_heads)
        self.norm = nn.LayerNorm(config.decoder_width)
        self.head = nn.Linear(config.decoder_width, config.patch_dim)

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], ids_restore: Int[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches values"]:
        """tokens: class token and visible patches."""
        x = self.embedding(tokens)
        masked = ids_restore.shape[1] + 1 - x.shape[1]
        shuffled = torch.cat([x[:, 1:], self.mask_token.expand(len(x), masked, -1)], dim=1)
        patches = shuffled.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[2]))  # back into reading order
        x = torch.cat([x[:, :1], patches], dim=1) + self.pos_embed
        return self.head(self.norm(self.transformer(x)))[:, 1:]

    def reconstruction_errors(
        self,
        values: Float[Tensor, "batch channels *size"],
        tokens: Float[Tensor, "batch tokens width"],
        kept: Int[Tensor, "batch visible"],
    ) -> Float[Tensor, " batch"]:
        """Mean squared error over the masked, normalized patches of each example, for encoders other than this file's.

        tokens: class token, or a pooled vector in its place, and the visible patches. kept: which patches these are.
        """
        patches = patchify_nd(values, self.config.patch_size)
        masked = torch.ones(patches.shape[:2], dtype=torch.bool, device=values.device).scatter(1, kept, False)
        errors = (self(tokens, restore_indices(masked)) - normalize_patches(patches)).square().mean(-1) * masked
        return errors.sum(1) / masked.sum(1).clamp(min=1)


class MaskedAutoencoder(nn.Module):
    """Encoder, decoder, masking and loss. After pre-training, `encoder` alone is kept."""

    def __init__(self, config: MaskedAutoencoderConfig, modality: str = "image"):
        """modality: the column of a batch that `losses` takes."""
        super().__init__()
        self.config, self.modality = config, modality
        self.encoder = MaskedEncoder(config)
        self.decoder = MaskedDecoder(config)

    def forward(
        self, values: Float[Tensor, "batch channels *size"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> MaskedAutoencoderOutput:
        """mask: True for masked patches, as many in every example; without it, it is sampled at random here."""
        if mask is None:
            noise = torch.rand(len(values), self.config.num_patches, device=values.device)
            mask = random_patch_mask(noise, self.config.mask_ratio)
        tokens = self.encoder(values, visible_indices(mask))
        return MaskedAutoencoderOutput(self.decoder(tokens, restore_indices(mask)), mask, tokens)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """`reconstruction` of `batch[modality]`, with the mask `batch["mask"]` where the batch has one."""
        output = self(batch[self.modality], batch.get("mask"))
        patches = patchify_nd(batch[self.modality], self.config.patch_size)
        loss = masked_patch_loss(output.prediction, patches, output.mask, self.config.norm_pix_loss)
        return {"reconstruction": loss}

    @torch.no_grad()
    def reconstruct(
        self, values: Float[Tensor, "batch channels *size"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Float[Tensor, "batch channels *size"]:
        """The input with its masked patches predicted; with `norm_pix_loss`, by the true mean and deviation of each."""
        output = self(values, mask)
        patches = patchify_nd(values, self.config.patch_size)
        prediction = output.prediction
        if self.config.norm_pix_loss:
            mean, std = patch_mean_std(patches)
            prediction = prediction * std + mean
        pasted = torch.where(output.mask[..., None], prediction, patches)
        return unpatchify_nd(pasted, self.config.patch_size, self.config.grid)


def _add_positions(module: nn.Module, config: MaskedAutoencoderConfig, width: int) -> None:
    """Position embeddings with that of the class token first, which is 0 at the start."""
    if config.pos_embed == "learned":
        module.register_parameter("pos_embed", nn.Parameter(0.02 * torch.randn(config.num_patches + 1, width)))
    else:
        module.register_buffer("pos_embed", F.pad(sine_positions_nd(config.grid, width), (0, 0, 1, 0)))
