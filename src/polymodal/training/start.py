"""Where a method's weights come from before its first step: another run, or published weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from polymodal.errors import UserError
from polymodal.training.run import WEIGHTS


def share_weights(source: nn.Module, target: nn.Module) -> int:
    """Copy every parameter whose name and shape agree; returns how many did."""
    return _take(target, dict(source.named_parameters()))


def from_run(directory: Path | str) -> Callable[[nn.Module], int]:
    """Weights of a finished run, wherever name and shape agree. Raises UserError when none does."""

    def start(model: nn.Module) -> int:
        path = Path(directory) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{directory} holds no finished run to start from (it has no {WEIGHTS}).")
        return _taken(model, _read([path]), str(directory))

    return start


def from_hub(name: str, rename: Mapping[str, str], prefix: str = "") -> Callable[[nn.Module], int]:
    r"""Published safetensors weights: a folder on this machine, or a model's name on the Hugging Face hub.

    rename: regular expressions of published names -> names here, applied in order to the whole name, for example
    {r"vision_model\.encoder\.layers\.(\d+)\.layer_norm1\.(.*)": r"image_encoder.transformer.blocks.\1.norm_1.\2"}.
    prefix: put before every new name. Raises UserError when no weight agrees in name and shape, or nothing is found.
    """

    def start(model: nn.Module) -> int:
        folder = Path(name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HfHubHTTPError, HFValidationError

            try:
                folder = Path(snapshot_download(name, allow_patterns=["*.safetensors"]))
            except (OSError, HfHubHTTPError, HFValidationError) as error:
                raise UserError(f"'{name}' is neither a folder nor a model on the hub that can be reached.") from error
        published = _read(sorted(folder.glob("*.safetensors")))
        if not published:
            raise UserError(f"{folder} has no .safetensors file.")
        renamed = {}
        for old, tensor in published.items():
            new = old
            for pattern, replacement in rename.items():
                new = re.sub(rf"^{pattern}$", replacement, new)
            renamed[prefix + new] = tensor
        return _taken(model, renamed, name)

    return start


def _read(paths: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise UserError(f"{path} cannot be read as safetensors weights ({type(error).__name__}).") from error
    return tensors


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
