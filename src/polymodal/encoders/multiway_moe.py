"""Multiway encoder of image and text with shared attention, MLPs by modality, and a mixture of experts on top.

VLMo (Bao et al. 2022, section 3.1) with the modality-aware mixture of EVE (Chen et al. 2024) in the last blocks. It
encodes an image, a text, or both, whose tokens then attend to each other. Of an image, it can encode
some patches alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polymodal.constraints import ContextLength, DecayRate, NonNegativeInt, PositiveFloat, PositiveInt
from polymodal.errors import UserError
from polymodal.layers.decoder import ModalityExperts
from polymodal.layers.top2_moe import Top2MoE, Top2Routing, quick_gelu
from polymodal.layers.transformer import Attention, DropPath, Packing, drop_path_schedule
from polymodal.modalities.image import check_tiles, patchify
from polymodal.modalities.text import Tokens

NORM_EPS = 1e-6
IMAGE, TEXT = 0, 1  # numbers of the modalities


@dataclass(frozen=True)
class MultiwayMoEConfig:
    """Configuration of the multiway encoder with a mixture of experts."""

    image_size: PositiveInt = 48
    """Side in pixels of the square input image, to which any image is resized."""
    patch_size: PositiveInt = 8
    """Side of a patch in pixels; must divide the image size."""
    vocab_size: PositiveInt = 1000
    """Vocabulary size of the byte-level BPE tokenizer, which is trained on the corpus."""
    context_length: ContextLength = 48
    """Maximum text length in tokens, including start and end token; longer texts are truncated."""
    width: PositiveInt = 64
    """Embedding width of tokens."""
    depth: PositiveInt = 3
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    top_depth: NonNegativeInt = 1
    """Number of last blocks whose MLPs are `top_ffn`; the MLPs of all other blocks are by modality."""
    top_ffn: Literal["moe", "modality", "dense"] = "moe"
    """MLPs of the last blocks: a mixture of experts, an MLP for each modality, or one for both; the latter two are
    twice as wide as an expert, of which a token takes two."""
    num_experts: PositiveInt = 8
    """Experts of a mixture, of which each token takes two."""
    modality_embedding: bool = True
    """Whether router and experts read an embedding of the modality of the token (modality-aware routing)."""
    capacity_factor: PositiveFloat = 1.0
    """Tokens that an expert takes in training, as a multiple of the mean; tokens beyond are dropped."""
    layer_scale_init: PositiveFloat = 0.1
    """Initial factor of the output of attention and MLP (LayerScale)."""
    drop_path_rate: DecayRate = 0.0
    """Drop path rate (stochastic depth) of the last block; rates increase linearly from 0."""
    word_dropout: DecayRate = 0.0
    """Dropout probability of token embeddings."""

    def __post_init__(self) -> None:
        if self.top_depth > self.depth:
            raise UserError(f"Of {self.depth} blocks, at most {self.depth} can be the last ones, not {self.top_depth}.")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def build(self, vocab_size: int) -> MultiwayMoEEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return MultiwayMoEEncoder(self, vocab_size)


class MultiwayTokens(NamedTuple):
    """Encoded tokens.

    image: class token, then the patches; None without an image. text: padded; None without a text. balance_loss: mean
    over the mixtures of experts; 0 without any.
    """

    image: Float[Tensor, "batch visible width"] | None
    text: Float[Tensor, "batch length width"] | None
    balance_loss: Float[Tensor, ""]


class Layout(NamedTuple):
    """What blocks know of packed tokens. modality, example: of each token. routes: tokens of each modality."""

    packing: Packing
    modality: Int[Tensor, " total"]
    example: Int[Tensor, " total"]
    routes: list[Int[Tensor, " some"]]

    @classmethod
    def of(cls, text: Tokens | None, image: Float[Tensor, "batch visible width"] | None) -> Layout:
        """Return the layout of images followed by texts, without padding."""
        masks = [] if image is None else [image.new_ones(image.shape[:2], dtype=torch.bool)]
        masks += [] if text is None else [text.mask]
        mask = torch.cat(masks, dim=1)
        packing, length = Packing.of(mask), 0 if image is None else image.shape[1]
        modality = (packing.indices % mask.shape[1] >= length).long() * TEXT
        routes = [(modality == number).nonzero().squeeze(1) for number in (IMAGE, TEXT)]
        return cls(packing, modality, packing.indices // mask.shape[1], routes)


class FeedForward(nn.Module):
    """Two-layer MLP with QuickGELU, after a norm of its own."""

    def __init__(self, width: int, mlp_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)

    def forward(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        return self.fc2(quick_gelu(self.fc1(self.norm(x))))


class MultiwayMoEBlock(nn.Module):
    """Pre-norm block with LayerScale: shared attention, then MLPs by modality, one MLP, or a mixture of experts."""

    def __init__(self, config: MultiwayMoEConfig, is_top: bool, drop_path_rate: float):
        super().__init__()
        width, self.kind = config.width, config.top_ffn if is_top else "modality"
        mlp_dim = 4 * width * (2 if is_top and self.kind != "moe" else 1)
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attention = Attention(width, config.num_heads)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((width,), config.layer_scale_init)) for _ in range(2))
        if self.kind == "moe":
            self.norm2 = nn.LayerNorm(width, NORM_EPS)
            modalities = 2 if config.modality_embedding else 0
            self.moe = Top2MoE(width, mlp_dim, config.num_experts, modalities, config.capacity_factor)
        elif self.kind == "modality":
            self.ffn: nn.Module = ModalityExperts({name: FeedForward(width, mlp_dim) for name in ("image", "text")})
        else:
            self.ffn = FeedForward(width, mlp_dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x: Float[Tensor, "total width"], layout: Layout
    ) -> tuple[Float[Tensor, "total width"], Float[Tensor, ""] | None]:
        """Return the tokens, and the balance loss of a mixture of experts."""
        x, balance = self.attend(x, layout), None
        if self.kind == "moe":
            y, balance = self.moe(self.norm2(x), layout.modality)
        else:
            y = self.ffn(x, layout.routes) if self.kind == "modality" else self.ffn(x)
        return x + self.drop_path(self.gamma2 * y, layout.example), balance

    def attend(self, x: Float[Tensor, "total width"], layout: Layout) -> Float[Tensor, "total width"]:
        """The first half of the block."""
        return x + self.drop_path(self.gamma1 * self.attention(self.norm1(x), layout.packing), layout.example)


class MultiwayMoEEncoder(nn.Module):
    """Multiway transformer over a class token, patches and words."""

    def __init__(self, config: MultiwayMoEConfig, vocab_size: int):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        self.config, width = config, config.width
        self.patch = nn.Linear(3 * config.patch_size**2, width)
        self.class_token = nn.Parameter(torch.empty(width))
        self.patch_positions = nn.Parameter(torch.empty(1 + config.num_patches, width))
        self.word = nn.Embedding(vocab_size + 1, width)  # the last entry is the mask token
        self.word_norm, self.word_dropout = nn.LayerNorm(width, NORM_EPS), nn.Dropout(config.word_dropout)
        self.word_positions = nn.Parameter(torch.empty(config.context_length, width))
        self.type_embedding = nn.Parameter(torch.empty(2, width))
        self.norm_pre, self.norm_post = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        first_top = config.depth - config.top_depth
        self.blocks = nn.ModuleList(
            MultiwayMoEBlock(config, number >= first_top, rate) for number, rate in enumerate(rates)
        )
        embeddings = (self.class_token, self.patch_positions, self.word.weight, self.word_positions)
        for parameter in (*embeddings, self.type_embedding):
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"] | None = None,
        text: Tokens | None = None,
        kept: Int[Tensor, "batch kept"] | None = None,
    ) -> MultiwayTokens:
        """Encode images, texts, or pairs. kept: the patches that are encoded; None: all."""
        x, visual, layout = self.embed_tokens(image, text, kept)
        balances = []
        for block in self.blocks:
            x, balance = block(x, layout)
            balances += [] if balance is None else [balance]
        padded = layout.packing.pad(self.norm_post(x))
        balance_loss = torch.stack(balances).mean() if balances else x.new_zeros(())
        words = None if text is None else padded[:, visual:]
        return MultiwayTokens(None if image is None else padded[:, :visual], words, balance_loss)

    def routings(
        self, image: Float[Tensor, "batch 3 size size"] | None, text: Tokens | None
    ) -> tuple[Layout, list[Top2Routing]]:
        """Return the layout of the tokens, and how each mixture of experts routes them."""
        x, _, layout = self.embed_tokens(image, text, None)
        routings = []
        for block in self.blocks:
            assert isinstance(block, MultiwayMoEBlock)
            if block.kind == "moe":
                routings.append(block.moe.route(block.norm2(block.attend(x, layout)), layout.modality)[1])
            x, _ = block(x, layout)
        return layout, routings

    def embed_tokens(
        self,
        image: Float[Tensor, "batch 3 size size"] | None,
        text: Tokens | None,
        kept: Int[Tensor, "batch kept"] | None,
    ) -> tuple[Float[Tensor, "total width"], int, Layout]:
        """Return the packed tokens that the blocks are given, the number of an image's tokens, and the layout."""
        parts, visual = [], None
        if image is not None:
            patches = self.patch(patchify(image, self.config.patch_size)) + self.patch_positions[1:]
            if kept is not None:  # after their positions are added
                patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
            class_token = (self.class_token + self.patch_positions[0]).expand(len(image), 1, -1)
            visual = torch.cat([class_token, patches], dim=1) + self.type_embedding[IMAGE]
            parts.append(visual)
        if text is not None:
            words = self.word_dropout(self.word_norm(self.word(text.ids)))
            parts.append(words + self.word_positions[: text.ids.shape[1]] + self.type_embedding[TEXT])
        layout = Layout.of(text, visual)
        packed = layout.packing.pack(torch.cat(parts, dim=1))
        return self.norm_pre(packed), 0 if visual is None else visual.shape[1], layout
