"""Page encoder: text with layout and page image in one transformer (LayoutLMv3, Huang et al. 2022, section 2.1)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from polymodal.constraints import ContextLength, DecayRate, NonNegativeInt, PositiveInt
from polymodal.data.columns.text import LearnedTokenizer, TokenizerSource
from polymodal.errors import UserError
from polymodal.layers.positions import LayoutEmbedding, SpatialBias
from polymodal.layers.transformer import Packing, PostNormBlock, Transformer
from polymodal.modalities.document import BOX_SCALE, PageTokens
from polymodal.modalities.image import check_tiles, patchify

# Names in LayoutLMv3's released weights -> names here, applied in order. What differs in shape is converted below.
LAYOUTLMV3_NAMES = (
    (r"^layoutlmv3\.", ""),
    (r"^embeddings\.LayerNorm\.", "word_norm."),
    (r"^embeddings\.word_embeddings\.", "word."),
    (r"^embeddings\.([xyhw])_", r"layout.\1_"),
    (r"^norm\.", "patch_norm."),
    (r"^LayerNorm\.", "norm."),
    (r"^patch_embed\.proj\.", "patch."),
    (r"^cls_token", "class_token"),
    (r"^pos_embed", "patch_positions"),
    (r"^encoder\.rel_pos", "bias.rel_pos"),
    (r"^encoder\.layer\.", "transformer.blocks."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
)
FIRST_POSITION = 2  # RoBERTa counts positions from the id of padding, 1, on


@dataclass(frozen=True)
class PageEncoderConfig:
    """Configuration of the page encoder."""

    context_length: ContextLength = 160
    """Maximum text length in tokens, including start and end token."""
    image_size: PositiveInt = 112
    """Side in pixels of the square input image, to which a page is resized."""
    patch_size: PositiveInt = 16
    """Side of a patch in pixels; must divide the image size."""
    width: PositiveInt = 64
    """Embedding width of tokens; even."""
    depth: NonNegativeInt = 3
    """Number of transformer blocks."""
    num_heads: PositiveInt = 4
    """Attention heads per block."""
    dropout: DecayRate = 0.1
    """Dropout of the input embeddings, of attention weights, and of attention and MLP outputs."""

    @property
    def grid(self) -> int:
        """Number of patches per side."""
        return self.image_size // self.patch_size

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of colors that the encoder expects; None: those of the corpus."""
        return None

    def tokenizer_source(self, vocab_size: int) -> TokenizerSource:
        """Return the source of the tokenizer: one of `vocab_size` entries that is trained on the corpus."""
        return LearnedTokenizer(vocab_size, self.context_length)

    def build(self, vocab_size: int) -> PageEncoder:
        """Build the encoder. vocab_size: entries of the tokenizer."""
        return PageEncoder(self, vocab_size)


class PageEncoder(nn.Module):
    """LayoutLMv3: linear patch embeddings after the text tokens, with a spatial attention bias over all pairs."""

    patch_boxes: Tensor

    def __init__(self, config: PageEncoderConfig, vocab_size: int):
        super().__init__()
        check_tiles(config.patch_size, config.image_size)
        self.config = config
        width = config.width
        self.word = nn.Embedding(vocab_size + 1, width)  # the last entry is the mask token
        self.word_positions = nn.Parameter(torch.empty(config.context_length, width))
        self.layout = LayoutEmbedding(width)
        self.word_norm = nn.LayerNorm(width)
        self.patch = nn.Linear(3 * config.patch_size**2, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.class_token = nn.Parameter(torch.empty(width))
        self.patch_positions = nn.Parameter(torch.empty(config.grid**2 + 1, width))
        self.patch_norm = nn.LayerNorm(width, eps=1e-6)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.bias = SpatialBias(config.num_heads)
        self.transformer = Transformer(
            width,
            config.depth,
            config.num_heads,
            dropout=config.dropout,
            kind=PostNormBlock,
            attention_dropout=config.dropout,
        )
        self.register_buffer("patch_boxes", patch_boxes(config.grid), persistent=False)
        for parameter in (
            self.word.weight,
            self.word_positions,
            self.mask_token,
            self.class_token,
            self.patch_positions,
        ):
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        words: PageTokens,
        image: Float[Tensor, "batch 3 size size"],
        word_mask: Bool[Tensor, "batch length"] | None = None,
        patch_mask: Bool[Tensor, "batch patches"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Float[Tensor, "batch patches_and_class width"]]:
        """Encode pages.

        word_mask, patch_mask: tokens replaced by the mask token; positions stay. Returns the text tokens, and the image
        tokens with the CLS token first.
        """
        batch, length = words.tokens.ids.shape
        x = torch.cat([self._words(words, word_mask), self._patches(image, patch_mask)], dim=1)
        # Image tokens are never padding.
        mask = F.pad(words.tokens.mask, (0, x.shape[1] - length), value=True)
        boxes = torch.cat([words.boxes, self.patch_boxes.expand(batch, -1, -1)], dim=1)
        positions = torch.cat([torch.arange(length), torch.arange(len(self.patch_boxes))]).to(x.device)
        x = self._transformed(x, mask, boxes, positions)
        return x[:, :length], x[:, length:]

    @torch.no_grad()
    def load_layoutlmv3(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of transformers' LayoutLMv3Model, or of a model with a head on it.

        The mask token of patches stays as it is: released weights have none. Raises UserError when another weight is
        missing or has another shape.
        """
        given = {}
        for name, tensor in weights.items():
            for pattern, replacement in LAYOUTLMV3_NAMES:
                name = re.sub(pattern, replacement, name)
            given[name] = tensor
        try:
            self._convert(given)
        except KeyError as error:
            raise UserError(f"These are no weights of LayoutLMv3: {error.args[0]} is not there.") from error
        for name, weight in self.state_dict().items():
            if name == "mask_token":
                continue
            if name not in given or given[name].shape != weight.shape:
                shape = tuple(given[name].shape) if name in given else "missing"
                raise UserError(f"The weights do not fit: {name} is {tuple(weight.shape)} here, and {shape} there.")
            weight.copy_(given[name])

    def _convert(self, given: dict[str, Tensor]) -> None:
        """Change, in place, the shapes of released weights to those here."""
        given["word.weight"] = torch.cat([given["word.weight"], given["word.weight"][-1:]])  # <mask> is the last entry
        token_type = given["embeddings.token_type_embeddings.weight"][0]  # all tokens have type 0
        positions = given["embeddings.position_embeddings.weight"] + token_type
        given["word_positions"] = positions[FIRST_POSITION : FIRST_POSITION + self.config.context_length]
        for coordinate in "xyhw":  # they have 1,024 rows, of which 1,001 are used
            name = f"layout.{coordinate}_position_embeddings.weight"
            given[name] = given[name][: BOX_SCALE + 1]
        given["patch.weight"] = given["patch.weight"].flatten(1)
        given["class_token"] = given["class_token"].flatten()
        given["patch_positions"] = given["patch_positions"][0]
        scale = (self.config.width // self.config.num_heads) ** 0.5  # the bias is divided like the logits
        for name in ("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"):
            given[f"bias.{name}.weight"] = given[f"bias.{name}.weight"].T / scale
        for index in range(self.config.depth):
            block = f"transformer.blocks.{index}.attention"
            for kind in ("weight", "bias"):
                parts = [given[f"{block}.self.{part}.{kind}"] for part in ("query", "key", "value")]
                given[f"{block}.qkv.{kind}"] = torch.cat(parts)

    def encode_image(self, image: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches_and_class width"]:
        """Encode page images without text, as for vision-only tasks."""
        x = self._patches(image, None)
        mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        positions = torch.arange(x.shape[1], device=x.device)
        return self._transformed(x, mask, self.patch_boxes.expand(len(x), -1, -1), positions)

    def _words(self, words: PageTokens, word_mask: Bool[Tensor, "batch length"] | None) -> Tensor:
        ids = words.tokens.ids
        if word_mask is not None:
            ids = ids.masked_fill(word_mask, self.word.num_embeddings - 1)
        x = self.word(ids) + self.word_positions[: ids.shape[1]] + self.layout(words.boxes)
        return self.dropout(self.word_norm(x))

    def _patches(self, image: Tensor, patch_mask: Bool[Tensor, "batch patches"] | None) -> Tensor:
        x = self.patch(patchify(image, self.config.patch_size))
        if patch_mask is not None:
            x = torch.where(patch_mask[:, :, None], self.mask_token, x)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        return self.patch_norm(x + self.patch_positions)

    def _transformed(self, x: Tensor, mask: Tensor, boxes: Tensor, positions: Tensor) -> Tensor:
        packing = dataclasses.replace(Packing.of(mask), bias=self.bias(boxes, positions))
        return packing.pad(self.transformer(packing.pack(self.dropout(self.norm(x))), packing))


def patch_boxes(grid: int) -> Int[Tensor, "patches_and_class 4"]:
    """Return the boxes of the CLS token and of the patches in thousandths of the page, as text boxes have."""
    edges = torch.arange(grid + 1) * BOX_SCALE // grid
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    boxes = torch.stack([edges[columns], edges[rows], edges[columns + 1], edges[rows + 1]], dim=-1).flatten(0, 1)
    return torch.cat([torch.tensor([[1, 1, BOX_SCALE - 1, BOX_SCALE - 1]]), boxes])
