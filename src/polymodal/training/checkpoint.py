"""Checkpoints: tensors in safetensors, the rest in JSON, written aside and renamed, so that one is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from polymodal.errors import UserError

PREFIX = "checkpoint-"


def save_weights(model: nn.Module, path: Path) -> None:
    """The state of a module as one safetensors file; replaces an older file in one step."""
    aside = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, aside)
    os.replace(aside, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Raises UserError when the file is damaged or its shapes are not the model's."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(f"{path} does not hold this run's weights ({type(error).__name__}); train it again.") from error


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Write `checkpoint-STEP` into a run and remove older ones. state: JSON values, with `step` among them."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors["random"] = torch.get_rng_state()
    final = directory / f"{PREFIX}{state['step']}"
    aside = directory / f".{PREFIX}partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / "tensors.safetensors"
    )
    (aside / "state.json").write_text(json.dumps(state))
    if final.exists():
        shutil.rmtree(final)
    os.rename(aside, final)
    for old in checkpoints(directory)[:-1]:
        shutil.rmtree(old)


def load_checkpoint(
    path: Path, model: nn.Module, average: AveragedModel | None, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put everything back as it was and return the state that was saved."""
    tensors = load_file(path / "tensors.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    if average is not None:
        average.load_state_dict(part("average."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimiser.").items():
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random"])
    return json.loads((path / "state.json").read_text())


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(directory.glob(f"{PREFIX}*"), key=lambda path: int(path.name.removeprefix(PREFIX)))


def remove_checkpoints(directory: Path) -> None:
    """A finished run needs none."""
    for path in checkpoints(directory):
        shutil.rmtree(path)
