"""Initial weights of a method: from another run, or pretrained."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

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
from polymodal.errors import UserError, nearest_path
from polymodal.modalities.text import TextTokenizer, Tokenizer
from polymodal.training.recipe_record import recipe_from_record
from polymodal.training.run import WEIGHTS, read_record


def copy_matching_weights(source: nn.Module, target: nn.Module) -> int:
    """Copy all parameters and statistics of batch norm whose name and shape match; return the number of parameters."""
    return _take(target, dict(source.named_parameters()) | dict(source.named_buffers()))


def random_weights(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new model without the parameters and buffers that begin with the same values whatever the seed is.

    It is what the arms of a comparison begin with alike. Constants, such as the initial logit scale, are
    hyper-parameters, in which arms may differ. The model serves as the source of `copy_matching_weights` only.
    """
    torch.manual_seed(seed + 1)
    other = build().state_dict()
    torch.manual_seed(seed)
    model = build()
    for name in [name for name, value in model.state_dict().items() if torch.equal(value, other[name])]:
        parent, _, leaf = name.rpartition(".")
        delattr(model.get_submodule(parent), leaf)
    return model


def from_run(directory: Path | str) -> Callable[[nn.Module], int]:
    """Return an initializer from a finished run, for matching names and shapes. Raises UserError when none matches."""

    def start(model: nn.Module) -> int:
        path = Path(directory) / WEIGHTS
        if not path.is_file():
            near = nearest_path(Path(directory))
            advice = f"; did you mean {near}?" if near else "."
            raise UserError(f"{directory} holds no finished run to start from (it has no {WEIGHTS}){advice}")
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
    """Load the pretrained weights of every pretrained encoder of a method; return the number of encoders."""
    towers = [module for module in model.modules() if isinstance(module, PretrainedModel | PretrainedDecoder)]
    for tower in towers:
        tower.load_pretrained()
    return len(towers)


def with_encoders(recipe: Any, towers: Mapping[str, str | None]) -> Any:
    """Return the recipe with pretrained encoders instead of its own.

    towers: source of each flag (vision, text_encoder, audio, lm): `hf:NAME` or `hf:PATH`, or None. Raises UserError
    when the recipe has no such encoder, or the source is invalid.
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
    """Return, per flag, the type of the recipe's field and the reader of a pretrained encoder."""
    return {
        "vision": (ImageEncoderConfig, PretrainedImageConfig.read),
        "text_encoder": (TextEncoderConfig, PretrainedTextConfig.read),
        "audio": (AudioEncoderConfig, PretrainedAudioConfig.read),
        "lm": (LanguageModelConfig, read_language_model),
    }


def with_pretrained(recipe: Any, source: str) -> Any:
    """Return the recipe adapted to a whole pretrained model. Raises UserError when the recipe does not support one."""
    if not hasattr(recipe, "with_pretrained"):
        raise UserError(
            "This recipe cannot start from a whole pretrained model; name one a tower: --vision, --text-encoder."
        )
    return recipe.with_pretrained(source_name(source))


def from_init(init: Path | str) -> Callable[[nn.Module], object]:
    """Return the initializer of `--init`: a finished run, or `hf:NAME`, whose configuration the recipe has adopted
    already."""
    if not str(init).startswith(HUB):
        return from_run(init)

    def start(model: nn.Module) -> object:
        if not hasattr(model, "load_pretrained_weights"):
            raise UserError(f"{type(model).__name__} cannot start from a whole pretrained model; --init takes a run.")
        return model.load_pretrained_weights(pretrained_weights(source_name(str(init))))  # type: ignore[operator]

    return start


def tokenizer_of(init: Path | str, trust_code: bool = False) -> Tokenizer | None:
    """Return the tokenizer of a finished run; None for runs without text and for pretrained models.

    trust_code: see `load_run`.
    """
    directory = Path(init)
    if str(init).startswith(HUB) or not (directory / WEIGHTS).is_file():
        return None
    recipe = recipe_from_record(read_record(directory)["recipe"], directory, trust_code)
    return getattr(Processor.load(directory, recipe.columns()), "tokenizer", None)


def with_tokenizer(recipe: Any, processor: Processor, tokenizer: Tokenizer) -> Processor:
    """Return the processor with an existing tokenizer, with the recipe's context length.

    Unchanged if the processor has no tokenizer, a pretrained one, or one with other special tokens.
    """
    own = getattr(processor, "tokenizer", None)
    if not (isinstance(own, TextTokenizer) and isinstance(tokenizer, TextTokenizer) and own.marks == tokenizer.marks):
        return processor
    with tempfile.TemporaryDirectory() as folder:
        processor.save(Path(folder))
        tokenizer.save(Path(folder))
        return Processor.load(Path(folder), recipe.columns())


def recipe_started_from(recipe: Any, init: Path | str | None, trust_code: bool = False) -> Any:
    """Return the recipe adapted to the run that it starts from, if it has `starting_from`, as MPO has.

    `starting_from` gets the recipe of the run, or None for no run, and raises UserError for what it cannot start from.
    """
    if not hasattr(recipe, "starting_from"):
        return recipe
    if init is None or not (Path(init) / WEIGHTS).is_file():
        return recipe.starting_from(None) if init is None else recipe
    return recipe.starting_from(recipe_from_record(read_record(Path(init))["recipe"], Path(init), trust_code))


def missing_weights(model: nn.Module, init: Path | str) -> list[str]:
    """Return the trainable parameters that a finished run does not have in name and shape, and warn of them."""
    if not (Path(init) / WEIGHTS).is_file():
        return []
    with safe_open(Path(init) / WEIGHTS, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    trainable = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    missing = [name for name, shape in trainable.items() if shapes.get(name) != shape]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(f"{init} has no weights for {', '.join(missing[:3])}{more}; they begin untrained.", stacklevel=2)
    return missing


def _taken(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> int:
    count = _take(model, tensors)
    if not count:
        example = next(iter(tensors), "none")
        raise UserError(
            f"No weight of {where} agrees in name and shape with this recipe's (the first there: {example})."
        )
    return count


def _take(model: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    statistics = [
        (f"{name}.{kind}", getattr(module, kind))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for kind in ("running_mean", "running_var")
    ]
    count = 0
    with torch.no_grad():
        for name, own in [*model.named_parameters(), *statistics]:
            given = tensors.get(name)
            if given is not None and given.shape == own.shape:
                whole = given.to(own.device, own.dtype)
                own.copy_(
                    distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole
                )
                count += isinstance(own, nn.Parameter)
    return count
