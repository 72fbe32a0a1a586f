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

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from polymodal.errors import UserError
from polymodal.files import written_aside
from polymodal.training.checkpoint_reading import PREFIX, STATE, checkpoints, local, rows_of_process
from polymodal.training.checksums import checksum, checksum_of_text
from polymodal.training.parallel import World

PATIENCE = 600.0  # timeout in seconds of the first process for the files of the others


def save_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Save named tensors as one safetensors file, atomically replacing an older file.

    Tensors that share memory, such as tied weights of pretrained models, are written twice, as the format cannot share
    them.
    """
    places: set[int] = set()
    alone = {}
    for name, tensor in weights.items():
        alone[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    with written_aside(path) as aside:
        _write(alone, aside, path.parent)


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
                (aside / STATE).write_text(state, encoding="utf-8")
            if copies:
                file = aside / f"tensors-{self.world.rank + 1}-of-{writers}.safetensors"
                unfinished = self.directory / f".{file.name}.partial"
                metadata = {"begins": json.dumps(begins)} | ({"state": checksum_of_text(state)} if state else {})
                _write(copies, unfinished, self.directory, metadata)
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


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a finished run, and what its stages mined."""
    for path in [*checkpoints(directory), *directory.glob("mined-*.npy"), *_unfinished(directory)]:
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
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path.touch()
        mode = path.stat().st_mode  # safetensors would let the owner alone read it
        save_file(plain, path, (metadata or {}) | {"checksum": checksum(plain)})
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
