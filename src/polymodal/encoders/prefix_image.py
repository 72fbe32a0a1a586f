"""Vision transformer of AIMv2: RMSNorm, SwiGLU, no CLS token, and prefix attention while it is trained.

At fixed resolution positions are learned; at native resolution they are sines and cosines of row and column, so that
images of any aspect ratio are encoded (AIMv2, Fini et al. 2024, section 3; released code).

Needed by: aimv2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import NonNegativeInt, PositiveInt
from polymodal.data.columns.image import ImageColumn
from polymodal.data.columns.native_image import NativeImageColumn
from polymodal.encoders.encoder import Encoder
from polymodal.encoders.pretrained import read_configuration
from polymodal.encoders.pretrained_image import image_mean_std
from polymodal.errors import UserError
from polymodal.layers.swiglu_transformer import NORM_EPS, SwiGLUTransformer, UnpaddedPacking
from polymodal.layers.transformer import Packing
from polymodal.modalities.image import PatchedImages, check_tiles, patchify
from polymodal.modalities.padding import Padded
from polymodal.rng import ExampleRNG

Images = Float[Tensor, "batch 3 size size"] | PatchedImages
PrefixAttention = Literal["prefix", "bidirectional", "causal"]


@dataclass(frozen=True)
class PrefixImageEncoderConfig:
    """Configuration of the prefix-attention image encoder."""

    image_size: PositiveInt = 64
    """Side of the square input image in pixels; of no account with sine-cosine positions."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; must divide the image size."""
    width: PositiveInt = 128
    """Embedding width of tokens."""
    depth: NonNegativeInt = 4
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    mlp_dim: PositiveInt = 352
    """Inner width of the SwiGLU MLPs."""
    pos_embed: Literal["learned", "sine"] = "learned"
    """Position embeddings: learned for one image size, or sine-cosine for native resolution."""
    image_mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue (0-1) for normalization; None: that of the corpus."""
    image_std: tuple[float, float, float] | None = None
    """Standard deviation of red, green and blue (0-1) for normalization; None: that of the corpus."""

    def __post_init__(self) -> None:
        check_tiles(self.patch_size, self.image_size)
        if self.pos_embed == "sine" and self.width % 4:
            raise UserError(f"Sine-cosine positions need a width that 4 divides, not {self.width}.")

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        return (self.image_mean, self.image_std) if self.image_mean and self.image_std else None

    def column(self, max_patches: int) -> ImageColumn | NativeImageColumn:
        """Return the column of images: of patches at native resolution, at most so many, with sine-cosine positions."""
        colors = self.image_mean_std or ((), ())
        if self.pos_embed == "sine":
            return NativeImageColumn(self.patch_size, max_patches, *colors)
        return ImageColumn(self.image_size, *colors)

    @classmethod
    def read(cls, name: str) -> PrefixImageEncoderConfig:
        """Read the configuration of an AIMv2 model on the hub or in a folder. Raises UserError for other models."""
        configuration = read_configuration(name)
        tower = getattr(configuration, "vision_config", configuration)
        if tower.model_type != "aimv2_vision_model":
            raise UserError(f"'{name}' ({tower.model_type}) is no AIMv2 model; write hf:NAME of one.")
        mean, std = image_mean_std(name) or (None, None)
        return cls(
            image_size=tower.image_size,
            patch_size=tower.patch_size,
            width=tower.hidden_size,
            depth=tower.num_hidden_layers,
            num_heads=tower.num_attention_heads,
            mlp_dim=tower.intermediate_size,
            pos_embed="sine" if tower.is_native else "learned",
            image_mean=mean,  # type: ignore[arg-type]
            image_std=std,  # type: ignore[arg-type]
        )

    def build(self) -> PrefixImageEncoder:
        return PrefixImageEncoder(self)


class PrefixImageEncoder(Encoder):
    """AIMv2's vision encoder; returns one token per patch in row-major order, and their mean."""

    def __init__(self, config: PrefixImageEncoderConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.width)
        self.norm_pre = nn.RMSNorm(config.width, NORM_EPS)
        grid = config.image_size // config.patch_size
        learned = config.pos_embed == "learned"
        self.positions = nn.Parameter(0.02 * torch.randn(grid**2, config.width)) if learned else None
        self.transformer = SwiGLUTransformer(config.width, config.depth, config.num_heads, config.mlp_dim, causal=True)
        self.norm_post = nn.RMSNorm(config.width, NORM_EPS)
        nn.init.xavier_uniform_(self.patch_embedding.weight)  # as the official code does
        nn.init.zeros_(self.patch_embedding.bias)

    def forward(
        self, image: Images, prefix: Int[Tensor, " batch"] | None = None
    ) -> tuple[Padded, Float[Tensor, "batch width"]]:
        """Encode images. image: normalized pixels, or patches of any grids with sine-cosine positions.

        prefix: number of first patches that attend to each other in both directions, while later ones attend causally;
        None: all of them, as at inference. Raises UserError for a number of patches without positions.
        """
        values = patches_of(image, self.config.patch_size)
        mask = values.mask
        dense = not isinstance(image, PatchedImages)
        packing = UnpaddedPacking(mask, mask.new_zeros(0).long()) if dense else Packing.of(mask)
        packing = replace(packing, prefix=values.lengths if prefix is None else prefix)
        x = self.norm_pre(self.patch_embedding(values.values)) + self._positions(image)
        x = packing.pad(self.norm_post(self.transformer(packing.pack(x), packing)))
        tokens = Padded(x, values.lengths)
        return tokens, tokens.mean()

    def _positions(self, image: Images) -> Float[Tensor, "... length width"]:
        if self.positions is not None:
            grid = self.config.image_size // self.config.patch_size
            if isinstance(image, PatchedImages) or image.shape[2:] != (grid * self.config.patch_size,) * 2:
                raise UserError("Learned positions are of one image size; --image.pos-embed sine takes images of any.")
            return self.positions
        if not isinstance(image, PatchedImages):
            grid = image.shape[2] // self.config.patch_size
            place = torch.arange(grid, device=image.device)
            return sine_positions(place.repeat_interleave(grid), place.repeat(grid), self.config.width)
        return sine_positions(image.row, image.column, self.config.width)

    @torch.no_grad()
    def load_pretrained_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of transformers' Aimv2VisionModel, or of the vision tower of its Aimv2Model.

        Raises UserError where one is missing or has another shape.
        """
        names = {name.removeprefix("vision_model."): value for name, value in weights.items()}
        try:
            state = {"patch_embedding.weight": names["embeddings.patch_embed.weight"].flatten(1)}
            state["patch_embedding.bias"] = names["embeddings.patch_embed.bias"]
            state["norm_pre.weight"] = names["embeddings.rms_norm.weight"]
            state["norm_post.weight"] = names["rms_norm.weight"]
            if self.positions is not None:
                state["positions"] = names["embeddings.position_embedding.weight"]
            for number in range(self.config.depth):
                theirs, ours = f"encoder.layers.{number}", f"transformer.blocks.{number}"
                qkv = [names[f"{theirs}.attention.{part}_proj.weight"] for part in "qkv"]
                gate_up = [names[f"{theirs}.ffn.{part}_proj.weight"] for part in ("gate", "up")]
                state[f"{ours}.attention.qkv.weight"] = torch.cat(qkv)
                state[f"{ours}.attention.out.weight"] = names[f"{theirs}.attention.out_proj.weight"]
                state[f"{ours}.feed_forward.gate_up.weight"] = torch.cat(gate_up)
                state[f"{ours}.feed_forward.down.weight"] = names[f"{theirs}.ffn.down_proj.weight"]
                for place in (1, 2):
                    state[f"{ours}.norm{place}.weight"] = names[f"{theirs}.rms_norm{place}.weight"]
            self.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            lacking = re.sub(r"\s+", " ", str(error)).strip("'\"")[:120]
            raise UserError(f"The weights do not fit an AIMv2 encoder of this size: {lacking}.") from error


def patches_of(image: Images, patch_size: int) -> Padded:
    """Return the normalized pixels of all patches."""
    if isinstance(image, PatchedImages):
        return Padded(image.values, image.lengths)
    values = patchify(image, patch_size)
    return Padded(values, values.new_full((len(values),), values.shape[1], dtype=torch.long))


def sample_prefix(
    patches: Int[Tensor, " batch"], attention: PrefixAttention, example_rng: ExampleRNG
) -> Int[Tensor, " batch"]:
    """Return the numbers of first patches that attend to each other: at random from 1 to all but one, all, or one.

    patches: number of patches of each image (AIMv2, section 3.1).
    """
    sampled = 1 + (example_rng.uniform() * (patches - 1)).long()
    return {"prefix": sampled, "bidirectional": patches, "causal": torch.ones_like(patches)}[attention]


def sine_positions(
    row: Int[Tensor, "*shape"], column: Int[Tensor, "*shape"], width: int
) -> Float[Tensor, "*shape width"]:
    """Return sine-cosine position embeddings, those of the column first, as in the released code."""
    omega = 10_000.0 ** -(torch.arange(width // 4, device=row.device) / (width // 4))
    angles = [place[..., None] * omega for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=-1)
