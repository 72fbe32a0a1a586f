"""Sizes of encoders: the configuration of any encoder at `small` or `base`.

`tiny` is what a recipe's defaults are, `large` is what its paper published; the two sizes between them are here.
`small` has 2.7 million parameters in the blocks of an image encoder and reads 96 px, for half an hour on the CPU of a
laptop. `base` has ViT-S's blocks and reads 224 px, for one GPU.

A new encoder whose configuration has `width`, `depth` and `num_heads` needs nothing here; one with more to scale
registers a function with `resized`.
"""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any

from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.image_tokenizer import ImageTokenizerConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.longformer import LongformerEncoderConfig
from polymodal.encoders.multiway import MultiwayEncoderConfig
from polymodal.encoders.multiway_moe import MultiwayMoEConfig
from polymodal.encoders.page import PageEncoderConfig
from polymodal.encoders.points import PointEncoderConfig
from polymodal.encoders.presets import VIT_SIZES, TransformerSize
from polymodal.encoders.pretrained import PretrainedConfig
from polymodal.encoders.pretrained_page import PretrainedPageConfig
from polymodal.encoders.size_names import Size
from polymodal.encoders.speech_text import SpeechTextEncoderConfig
from polymodal.encoders.swin import SwinEncoderConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.encoders.video import VideoEncoderConfig
from polymodal.encoders.volume_resnet import VolumeResNetConfig

BLOCKS = {"small": TransformerSize(192, 6, 4), "base": VIT_SIZES["S"]}  # of what is no text
TEXT_BLOCKS = {"small": TransformerSize(192, 4, 4), "base": TransformerSize(384, 6, 6)}
DECODER_BLOCKS = {"small": TransformerSize(256, 6, 4), "base": TransformerSize(768, 12, 12)}  # base: GPT-2's
IMAGE_SIDE = {"small": 96, "base": 224}  # px
PATCH_SIDE = 16  # px
PUBLISHED_SIDE = 112  # px, from which on an image has the side and the patches of a paper
VOCABULARY = {"small": 8000, "base": 32_000}
CONTEXT_LENGTH = {"small": 512, "base": 1024}  # of language models


def is_resizable(config: Any) -> bool:
    """Return whether a value is the configuration of a model part that has a width."""
    return dataclasses.is_dataclass(config) and not isinstance(config, type) and hasattr(config, "width")


@singledispatch
def resized(config: Any, size: Size) -> Any:
    """Return the configuration at size `small` or `base`; anything without a width is returned as it is.

    A configuration whose images have the size of a paper's keeps their patches, and its images do not grow.
    """
    return _with_blocks(config, BLOCKS[size]) if is_resizable(config) else config


def _with_blocks(config: Any, blocks: TransformerSize, **changes: Any) -> Any:
    """Return the configuration with width, depth and heads of `blocks`, as far as it has them."""
    names = {field.name for field in dataclasses.fields(config)}
    of_blocks = {"width": blocks.width, "depth": blocks.depth, "num_heads": blocks.heads}
    return dataclasses.replace(config, **{name: of_blocks[name] for name in of_blocks.keys() & names}, **changes)


def _image_and_patch(config: Any, side: int) -> dict[str, int]:
    """Return the sides of image and patch in pixels; of what a paper published, the image has at most `side`."""
    if config.image_size >= PUBLISHED_SIDE:
        patches = min(config.image_size, max(side, PUBLISHED_SIDE)) // config.patch_size
        return {"image_size": patches * config.patch_size, "patch_size": config.patch_size}
    return {"image_size": side, "patch_size": PATCH_SIDE}


@resized.register(PretrainedConfig)
@resized.register(PretrainedPageConfig)
def _pretrained(config: Any, size: Size) -> Any:
    return config


@resized.register(ImageEncoderConfig)
def _image(config: ImageEncoderConfig, size: Size) -> ImageEncoderConfig:
    return _with_blocks(config, BLOCKS[size], **_image_and_patch(config, IMAGE_SIDE[size]))


@resized.register(SwinEncoderConfig)
def _swin(config: SwinEncoderConfig, size: Size) -> SwinEncoderConfig:
    if size == "small":
        return dataclasses.replace(config, image_size=96, width=48, depths=(1, 2, 4), num_heads=(2, 4, 8), window=6)
    return SwinEncoderConfig(224, 4, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, config.drop_path_rate)  # Swin-T


@resized.register(VideoEncoderConfig)
def _video(config: VideoEncoderConfig, size: Size) -> VideoEncoderConfig:
    sides = _image_and_patch(config, IMAGE_SIDE[size])
    return _with_blocks(config, BLOCKS[size], frames=min(config.frames, 8), **sides)


@resized.register(MultiwayEncoderConfig)
def _multiway(config: MultiwayEncoderConfig, size: Size) -> MultiwayEncoderConfig:
    sides = _image_and_patch(config, {"small": 128, "base": 384}[size])  # boxes need more pixels than names
    vocab_size = max(config.vocab_size if size == "small" else 0, VOCABULARY[size])
    return _with_blocks(config, BLOCKS[size], vocab_size=vocab_size, **sides)


@resized.register(MultiwayMoEConfig)
def _multiway_moe(config: MultiwayMoEConfig, size: Size) -> MultiwayMoEConfig:
    sides = _image_and_patch(config, IMAGE_SIDE[size])
    vocab_size = max(config.vocab_size if size == "small" else 0, VOCABULARY[size])
    return _with_blocks(config, BLOCKS[size], vocab_size=vocab_size, top_depth=2, **sides)


@resized.register(PageEncoderConfig)
def _page(config: PageEncoderConfig, size: Size) -> PageEncoderConfig:
    side, length = {"small": (160, 256), "base": (224, 512)}[size]  # small print needs more pixels than things
    return _with_blocks(config, BLOCKS[size], image_size=side, patch_size=PATCH_SIDE, context_length=length)


@resized.register(TextEncoderConfig)
def _text(config: TextEncoderConfig, size: Size) -> TextEncoderConfig:
    length = max(config.context_length, 64) if size == "small" else config.context_length
    return _with_blocks(
        config, TEXT_BLOCKS[size], vocab_size=max(config.vocab_size, VOCABULARY["small"]), context_length=length
    )


@resized.register(LongformerEncoderConfig)
def _longformer(config: LongformerEncoderConfig, size: Size) -> LongformerEncoderConfig:
    window, length = {"small": (64, 256), "base": (128, 512)}[size]
    return _with_blocks(
        config, TEXT_BLOCKS[size], vocab_size=VOCABULARY[size], context_length=length, attention_window=window
    )


@resized.register(LanguageModelConfig)
def _language_model(config: LanguageModelConfig, size: Size) -> LanguageModelConfig:
    blocks, queries_a_key = DECODER_BLOCKS[size], config.num_heads // config.num_kv_heads
    return _with_blocks(
        config,
        blocks,
        vocab_size=VOCABULARY[size],
        context_length=CONTEXT_LENGTH[size],
        num_kv_heads=max(blocks.heads // queries_a_key, 1),
        mlp_dim=11 * blocks.width // 4,  # three matrices of 8/3 of the width count as two of 4, rounded up (SwiGLU)
    )


@resized.register(SpeechTextEncoderConfig)
def _speech_text(config: SpeechTextEncoderConfig, size: Size) -> SpeechTextEncoderConfig:
    speech, shared = {"small": (2, 4), "base": (4, 8)}[size]
    return _with_blocks(config, BLOCKS[size], speech_depth=speech, shared_depth=shared)


@resized.register(PointEncoderConfig)
def _points(config: PointEncoderConfig, size: Size) -> PointEncoderConfig:
    groups, members = {"small": (64, 32), "base": (256, 32)}[size]
    return _with_blocks(config, BLOCKS[size], num_groups=groups, group_size=members)


@resized.register(VolumeResNetConfig)
def _volume(config: VolumeResNetConfig, size: Size) -> VolumeResNetConfig:
    width, depths = {"small": (24, (2, 2, 2, 2)), "base": (64, (3, 4, 6, 3))}[size]  # base: ResNet-50's
    return dataclasses.replace(config, width=width, depths=depths)


@resized.register(ImageTokenizerConfig)
def _image_tokenizer(config: ImageTokenizerConfig, size: Size) -> ImageTokenizerConfig:
    entries, dim, width = {"small": (512, 16, 64), "base": (4096, 32, 128)}[size]
    return dataclasses.replace(config, codebook_size=entries, codebook_dim=dim, width=width)
