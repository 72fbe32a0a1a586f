"""Checkpoints: tensors in safetensors, the rest in JSON; written to a temporary name and renamed (atomic).

Tensors that FSDP2 shards over processes are written by each process as its own rows, and may be read by any number of
processes. A checkpoint is copied at once and written by a background thread while training continues.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polymodal.errors import UserError
from polymodal.training.ema import ExponentialMovingAverage
from polymodal.training.parallel import World

PREFIX = "checkpoint-"
PATIENCE = 600.0  # timeout in seconds of the first process for the files of the others


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Save named tensors as one safetensors file, atomically replacing an older file.

    Tensors that share memory, such as tied weights of pretrained models, are written twice, as the format cannot share
    them.
    """
    aside = path.with_name(f".{path.name}.partial")
    places: set[int] = set()
    alone = {}
    for name, tensor in weights.items():
        alone[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    _write(alone, aside, path.parent)
    os.replace(aside, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights. Raises UserError when the file is damaged or its shapes differ from the model's."""
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        raise UserError(f"{path} does not hold this run's weights ({type(error).__name__}); train it again.") from error


def training_tensors(
    model: nn.Module, ema: ExponentialMovingAverage | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return everything that training changes, by name: weights, buffers, their EMA, and the optimizer's moments."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.averages.items()}
    for name, parameter in model.named_parameters():
        for moment, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{moment}"] = tensor
    return tensors


class CheckpointWriter:
    """Writes `checkpoint-STEP` folders of a run, one at a time, in a background thread."""

    def __init__(self, directory: Path, keep_checkpoints: int, world: World):
        self.directory = directory
        self.keep_checkpoints = keep_checkpoints
        self.world = world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy all tensors now and write them in the background. state: JSON values, including `step`.

        Raises UserError when an earlier checkpoint could not be written.
        """
        self.wait()
        copies, begins = {}, {}
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                begins[name] = [rows_of_process(tensor, self.world)[0], len(tensor)]
            elif not self.world.first:
                continue
            copies[name] = local(tensor).detach().to("cpu", copy=True).contiguous()
        text = json.dumps(state) if self.world.first else ""
        writers = max(self.world.all_gather_object(self.world.rank + 1 if copies else 0))
        arguments = (copies, begins, text, state["step"], writers)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises UserError when it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, copies: dict[str, Tensor], begins: dict[str, Any], state: str, step: int, writers: int) -> None:
        aside = self.directory / f".{PREFIX}{step}.partial"
        try:
            if self.world.first:
                aside.mkdir(exist_ok=True)
                (aside / "state.json").write_text(state, encoding="utf-8")
            if copies:
                file = aside / f"tensors-{self.world.rank + 1}-of-{writers}.safetensors"
                unfinished = self.directory / f".{file.name}.partial"
                _write(copies, unfinished, self.directory, {"begins": json.dumps(begins)})
                aside.mkdir(exist_ok=True)
                os.replace(unfinished, file)
            if self.world.first:
                _wait_for(aside, writers)
                final = self.directory / f"{PREFIX}{step}"
                shutil.rmtree(final, ignore_errors=True)
                os.rename(aside, final)
                for old in checkpoints(self.directory)[: -self.keep_checkpoints]:
                    shutil.rmtree(old)
        except UserError as error:
            shutil.rmtree(aside, ignore_errors=True)
            self._error = error
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            self._error = _cannot_write(self.directory, error)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    ema: ExponentialMovingAverage | None,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> None:
    """Restore everything that training changes. Raises UserError when a part of it is missing."""
    saved = SavedTensors(path)
    with torch.no_grad():
        for name, tensor in training_tensors(model, ema, optimizer).items():
            if not name.startswith("optimizer."):
                saved.copy_into(name, tensor, world)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                moments = {}
                for moment in saved.below(f"optimizer.{name}."):
                    like = torch.zeros_like(parameter) if moment != "step" else torch.zeros((), device=parameter.device)
                    moments[moment] = saved.copy_into(f"optimizer.{name}.{moment}", like, world)
                if moments:
                    optimizer.state[parameter] = moments


def load_state(path: Path) -> dict[str, Any]:
    """Load the JSON state of a checkpoint."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


class SavedTensors:
    """Tensors of a checkpoint, assembled from the files of all processes."""

    def __init__(self, path: Path):
        self.path = path
        self.files = [safe_open(file, "pt") for file in sorted(path.glob("tensors-*.safetensors"))]
        self.pieces: dict[str, list[tuple[int, Any]]] = {}
        for file in self.files:
            begins = json.loads((file.metadata() or {}).get("begins", "{}"))
            for name in file.keys():  # noqa: SIM118
                self.pieces.setdefault(name, []).append((begins.get(name, [0])[0], file))

    def below(self, prefix: str) -> list[str]:
        """Return the rest of all names with this prefix, if it has no further dot."""
        found = (name.removeprefix(prefix) for name in self.pieces if name.startswith(prefix))
        return [rest for rest in found if "." not in rest]

    def copy_into(self, name: str, tensor: Tensor, world: World) -> Tensor:
        """Fill a tensor, or this process's shard of it. Raises UserError when rows are missing in the checkpoint."""
        own = local(tensor)
        first, end = rows_of_process(tensor, world) if isinstance(tensor, DTensor) else (0, len(own) if own.ndim else 1)
        filled = 0
        for begin, file in self.pieces.get(name, []):
            if own.ndim == 0:
                own.copy_(file.get_tensor(name))
                filled = 1
                break
            saved = file.get_slice(name)
            rows = slice(max(first, begin), min(end, begin + saved.get_shape()[0]))
            if rows.start < rows.stop:
                own[rows.start - first : rows.stop - first].copy_(saved[rows.start - begin : rows.stop - begin])
                filled += rows.stop - rows.start
        if filled != end - first:
            raise UserError(f"{self.path} lacks a part of '{name}'; remove this checkpoint and resume again.")
        return tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of_process(tensor: DTensor, world: World) -> tuple[int, int]:
    """Return first and last row (exclusive) of this process's shard: FSDP2 splits dimension 0 like `torch.chunk`."""
    size = -(-len(tensor) // world.size)
    first = min(world.rank * size, len(tensor))
    return first, first + len(tensor.to_local())


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(directory.glob(f"{PREFIX}*"), key=lambda path: int(path.name.removeprefix(PREFIX)))


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a finished run."""
    for path in [*checkpoints(directory), *_unfinished(directory)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_unfinished(directory: Path) -> None:
    """Remove partially written files of a killed run."""
    for path in _unfinished(directory):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _unfinished(directory: Path) -> Iterator[Path]:
    yield from directory.glob(f".{PREFIX}*.partial")
    yield from directory.glob(".*.safetensors.partial")


def _write(tensors: dict[str, Tensor], path: Path, directory: Path, metadata: dict[str, str] | None = None) -> None:
    """Write and fsync one safetensors file. Raises UserError when the disk is full."""
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors would let the owner alone read it
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
        path.chmod(mode)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise _cannot_write(directory, error) from error


def _cannot_write(directory: Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    why = "the disk is full" if full else str(error)
    return UserError(f"{directory} cannot be written ({why}); mend that, then go on with: polymodal resume {directory}")


def _wait_for(folder: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE
    while len(list(folder.glob("tensors-*.safetensors"))) < count:
        if time.monotonic() > until:
            raise UserError(
                f"Another process did not write its part of {folder}; is the folder shared by all machines?"
            )
        time.sleep(0.01)
