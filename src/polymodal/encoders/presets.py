"""Published sizes of encoders: ViT, BERT, the towers of CLIP, and InternLM2.

They configure this package's encoders, whose parameter counts equal the originals' up to heads: `tests/test_presets.py`
explains every difference.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import unknown


class TransformerSize(NamedTuple):
    """Width, number of blocks and attention heads; an MLP has four times the width."""

    width: int
    depth: int
    heads: int


# Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1 (Ti and S).
VIT_SIZES = {
    "Ti": TransformerSize(192, 12, 3),
    "S": TransformerSize(384, 12, 6),
    "B": TransformerSize(768, 12, 12),
    "L": TransformerSize(1024, 24, 16),
    "H": TransformerSize(1280, 32, 16),
}
BERT_SIZES = {"base": TransformerSize(768, 12, 12), "large": TransformerSize(1024, 24, 16)}  # Devlin et al. 2019
# Radford et al. 2021, table 20; H/14 as in open_clip: vision size, patch size, text size, dimensions of the space.
CLIP_SIZES = {
    "ViT-B/32": ("B", 32, TransformerSize(512, 12, 8), 512),
    "ViT-B/16": ("B", 16, TransformerSize(512, 12, 8), 512),
    "ViT-L/14": ("L", 14, TransformerSize(768, 12, 12), 768),
    "ViT-H/14": ("H", 14, TransformerSize(1024, 24, 16), 1024),
}

# Cai et al. 2024, table 1, and the released configuration of InternLM2-1.8B.
INTERNLM2_1_8B = LanguageModelConfig(
    vocab_size=92_544,
    context_length=32_768,
    width=2048,
    depth=24,
    num_heads=16,
    num_kv_heads=8,
    mlp_dim=8192,
    rope_theta=1e6,
    norm_eps=1e-5,
    tie_word_embeddings=False,
)


class CLIPTowers(NamedTuple):
    """Both encoders of a CLIP model, and the dimension of the joint embedding space."""

    image: ImageEncoderConfig
    text: TextEncoderConfig
    embed_dim: int


def vit(
    size: str,
    patch_size: int = 16,
    image_size: int = 224,
    pooling: Literal["avg", "max", "cls", "map"] = "cls",
) -> ImageEncoderConfig:
    """Return a vision transformer such as ViT-B/16: `vit("B", 16)`.

    size: Ti, S, B, L or H. Patch sizes of 14, 16 and 32 are published. Raises UserError for an unknown size.
    """
    if size not in VIT_SIZES:
        raise unknown("ViT size", size, VIT_SIZES)
    width, depth, heads = VIT_SIZES[size]
    return ImageEncoderConfig(
        image_size=image_size, patch_size=patch_size, width=width, depth=depth, num_heads=heads, pool_type=pooling
    )


def bert(size: str = "base", context_length: int = 512) -> TextEncoderConfig:
    """Return the size of BERT base or large, with its vocabulary of 30,522 and its dropout.

    size: base or large. The blocks are pre-norm, where BERT's are post-norm. Raises UserError for an unknown size.
    """
    if size not in BERT_SIZES:
        raise unknown("BERT size", size, BERT_SIZES)
    width, depth, heads = BERT_SIZES[size]
    return TextEncoderConfig(
        30_522, context_length, width=width, depth=depth, num_heads=heads, pool_type="cls", dropout=0.1
    )


def clip(name: str, image_size: int = 224) -> CLIPTowers:
    """Return the towers of CLIP: "ViT-B/32", "ViT-B/16", "ViT-L/14" (also at 336 pixels) or "ViT-H/14".

    Raises UserError for an unknown name.
    """
    if name not in CLIP_SIZES:
        raise unknown("CLIP model", name, CLIP_SIZES)
    vision, patch_size, (width, depth, heads), embed_dim = CLIP_SIZES[name]
    text = TextEncoderConfig(49_408, 77, width=width, depth=depth, num_heads=heads, causal=True, pool_type="eos")
    return CLIPTowers(vit(vision, patch_size, image_size), text, embed_dim)
