"""Where a method's weights come from before its first step: another run, or pretrained weights."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from polymodal.data.processor import Processor
from polymodal.encoders.audio import AudioEncoderConfig
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.encoders.language_model import LanguageModelConfig
from polymodal.encoders.pretrained import HUB, PretrainedModel, pretrained_weights, read_tensors, source_name
from polymodal.encoders.pretrained_audio import PretrainedAudioConfig
from polymodal.encoders.pretrained_image import PretrainedImageConfig
from polymodal.encoders.pretrained_language_model import PretrainedDecoder, read_language_model
from polymodal.encoders.pretrained_text import PretrainedTextConfig
from polymodal.encoders.text import TextEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.text import TextTokenizer, Tokenizer
from polymodal.training.recipe_record import recipe_from_record
from polymodal.training.run import WEIGHTS, read_record


def copy_matching_weights(source: nn.Module, target: nn.Module) -> int:
    """Copy every parameter whose name and shape agree; returns how many did."""
    return _take(target, dict(source.named_parameters()))


def from_run(directory: Path | str) -> Callable[[nn.Module], int]:
    """Weights of a finished run, wherever name and shape agree. Raises UserError when none does."""

    def start(model: nn.Module) -> int:
        path = Path(directory) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{directory} holds no finished run to start from (it has no {WEIGHTS}).")
        return _taken(model, read_tensors(path), str(directory))

    return start


def from_pretrained(name: str, rename: Mapping[str, str], prefix: str = "") -> Callable[[nn.Module], int]:
    r"""Pretrained safetensors weights: a folder on this machine, or a model's name on the Hugging Face hub.

    rename: regular expressions of the source's names -> names here, applied in order to the whole name, for example
    {r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1\.(.*)": r"image_encoder.transformer.blocks.\1.norm1.\2"}.
    prefix: put before every new name. Raises UserError when no weight agrees in name and shape, or nothing is found.
    """

    def start(model: nn.Module) -> int:
        renamed = {}
        for old, tensor in pretrained_weights(name).items():
            new = old
            for pattern, replacement in rename.items():
                new = re.sub(rf"^{pattern}$", replacement, new)
            renamed[prefix + new] = tensor
        return _taken(model, renamed, name)

    return start


def load_pretrained(model: nn.Module) -> int:
    """Give every pretrained tower of a method its pretrained weights; returns how many there are."""
    towers = [module for module in model.modules() if isinstance(module, PretrainedModel | PretrainedDecoder)]
    for tower in towers:
        tower.load_pretrained()
    return len(towers)


def with_encoders(recipe: Any, towers: Mapping[str, str | None]) -> Any:
    """The recipe with pretrained towers in place of its own.

    towers: by their flags (vision, text_encoder, audio, lm), a source each, `hf:NAME` or `hf:PATH`, or None. Raises
    UserError when the recipe has no such tower, or the source is none.
    """
    hints = typing.get_type_hints(type(recipe))
    for flag, source in towers.items():
        if source is None:
            continue
        own, reader = _tower_kinds()[flag]
        fields = [name for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, own)]
        if not fields:
            raise UserError(
                f"This recipe has no tower that --{flag.replace('_', '-')} could replace; "
                "`polymodal show` lists what it has."
            )
        config = reader(source_name(source))
        recipe = dataclasses.replace(recipe, **dict.fromkeys(fields, config))
    return recipe


def _tower_kinds() -> dict[str, tuple[type, Callable[[str], Any]]]:
    """Flag -> the type of a recipe's field, and what reads a pretrained tower for it."""
    return {
        "vision": (ImageEncoderConfig, PretrainedImageConfig.read),
        "text_encoder": (TextEncoderConfig, PretrainedTextConfig.read),
        "audio": (AudioEncoderConfig, PretrainedAudioConfig.read),
        "lm": (LanguageModelConfig, read_language_model),
    }


def with_pretrained(recipe: Any, source: str) -> Any:
    """The recipe with all that a pretrained model brings for it. Raises UserError when it takes no whole model."""
    if not hasattr(recipe, "with_pretrained"):
        raise UserError(
            "This recipe cannot start from a whole pretrained model; name one a tower: --vision, --text-encoder."
        )
    return recipe.with_pretrained(source_name(source))


def from_init(init: Path | str) -> Callable[[nn.Module], object]:
    """What `--init` means: a finished run, or `hf:NAME`, whose towers the recipe has taken over already."""
    if not str(init).startswith(HUB):
        return from_run(init)
    return lambda model: model.load_pretrained_weights(pretrained_weights(source_name(str(init))))  # type: ignore[operator]


def tokenizer_of(init: Path | str, trust_code: bool = False) -> Tokenizer | None:
    """The tokenizer of a finished run; None for a run without text, and for a pretrained model, whose recipe has it.

    trust_code: see `load_run`.
    """
    directory = Path(init)
    if str(init).startswith(HUB) or not (directory / WEIGHTS).is_file():
        return None
    recipe = recipe_from_record(read_record(directory)["recipe"], directory, trust_code)
    return getattr(Processor.load(directory, recipe.columns()), "tokenizer", None)


def with_tokenizer(recipe: Any, processor: Processor, tokenizer: Tokenizer) -> Processor:
    """The processor with a tokenizer that was learned before, read as the recipe wants it.

    It stays as it is where it has none, where its own is a pretrained tower's, and where the marks are others.
    """
    own = getattr(processor, "tokenizer", None)
    if not (isinstance(own, TextTokenizer) and isinstance(tokenizer, TextTokenizer) and own.marks == tokenizer.marks):
        return processor
    with tempfile.TemporaryDirectory() as folder:
        processor.save(Path(folder))
        tokenizer.save(Path(folder))
        return Processor.load(Path(folder), recipe.columns())


def _taken(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> int:
    count = _take(model, tensors)
    if not count:
        example = next(iter(tensors), "none")
        raise UserError(
            f"No weight of {where} agrees in name and shape with this recipe's (the first there: {example})."
        )
    return count


def _take(model: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    count = 0
    with torch.no_grad():
        for name, own in model.named_parameters():
            given = tensors.get(name)
            if given is not None and given.shape == own.shape:
                whole = given.to(own.device, own.dtype)
                own.copy_(
                    distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole
                )
                count += 1
    return count
