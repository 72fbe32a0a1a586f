"""Reading of weights and checkpoints: a damaged file is one sentence, and the newest whole checkpoint is used."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polymodal.errors import MemoryExhausted, UserError, check_resources, one_line, read_errors
from polymodal.training.checksums import checksum, checksum_of_text
from polymodal.training.ema import ExponentialMovingAverage
from polymodal.training.parallel import World
from polymodal.training.progress import SavedState

PREFIX = "checkpoint-"
STATE = "state.json"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW
SAVED_AS = {
    torch.float64: ("F64",),
    torch.float32: ("F32",),
    torch.float16: ("F16",),
    torch.bfloat16: ("BF16",),
    torch.int64: ("I64",),
    torch.int32: ("I32",),
    torch.int16: ("I16",),
    torch.int8: ("I8",),
    torch.uint8: ("U8",),
    torch.bool: ("BOOL",),
    torch.complex64: ("C64",),
}


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights. Raises UserError for a damaged file, other names, types or shapes, and values that are NaN."""
    advice = "train the run again, or copy the file again from where it is whole"
    try:
        loaded, metadata = _tensors(path)
    except Exception as error:  # safetensors has its own errors
        check_resources(error)
        raise UserError(f"{path} does not hold this run's weights ({one_line(error)}); {advice}.") from error
    if wrong := _differs(loaded, model.state_dict()):
        raise UserError(f"{path} does not hold this run's weights ({wrong}); {advice}.")
    if metadata.get("checksum") not in (None, checksum(loaded)):
        raise UserError(f"{path} was changed or damaged after it was written (its checksum differs); {advice}.")
    if name := not_finite(loaded, {name for name, _ in model.named_parameters()}):
        raise UserError(
            f"{path} has values in '{name}' that are not finite, so its outputs say nothing; train the run again "
            "with a smaller --learning-rate or a --max-grad-norm."
        )
    model.load_state_dict(loaded)


def whole_tensors(path: Path, advice: str) -> dict[str, Tensor]:
    """Read tensors. Raises UserError for a file that is missing, damaged, or not what was written."""
    with read_errors(path, advice):
        loaded, metadata = _tensors(path)
        if metadata.get("checksum") not in (None, checksum(loaded)):
            raise UserError(f"{path} was changed or damaged after it was written (its checksum differs); {advice}.")
        return loaded


def best_steps(directory: Path) -> set[int]:
    """Return the steps of the best weights that the checkpoints of a run refer to; damaged ones refer to none."""
    steps = set()
    for path in checkpoints(directory):
        with suppress(OSError, ValueError):
            steps.add(SavedState.of(json.loads((path / STATE).read_text(encoding="utf-8"))).progress.best_step)
    return steps


def _tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _differs(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return what differs between the tensors of a file and of a model; '' if nothing does."""
    for name in wanted.keys() ^ loaded.keys():
        return f"'{name}' is {'missing' if name in wanted else 'of no use'}"
    for name, tensor in wanted.items():
        has = loaded[name]
        if has.dtype != tensor.dtype or has.shape != tensor.shape:
            return f"'{name}' is {has.dtype} {list(has.shape)}, not {tensor.dtype} {list(tensor.shape)}"
    return ""


def not_finite(tensors: Mapping[str, Tensor], parameters: set[str]) -> str:
    """Return the name of a parameter that is not finite, or of another tensor with NaN; '' if there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = ~torch.isfinite(tensor) if name in parameters else torch.isnan(tensor)
            if bool(bad.any()):
                return name
    return ""


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    matched = [path for path in directory.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}[0-9]{{1,18}}", path.name)]
    return sorted(matched, key=lambda path: int(path.name.removeprefix(PREFIX)))


def newest_whole(directory: Path, warn: bool = True) -> tuple[Path, SavedState] | None:
    """Return the newest checkpoint that is whole, and its state; None where there is none at all.

    warn: whether damaged ones are told. Raises UserError when there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(directory)):
        try:
            matched = path, _whole_state(path)
        except MemoryExhausted:  # an older checkpoint would lose steps, and need as much
            raise
        except UserError as error:
            damaged.append(str(error))
            continue
        if damaged and warn:
            warnings.warn(f"{' '.join(damaged)} Training goes on from {path}, the newest whole one.", stacklevel=2)
        return matched
    if damaged:
        raise UserError(
            f"{damaged[0]} No checkpoint of {directory} is whole: remove this folder, and train the run again."
        )
    return None


def _whole_state(path: Path) -> SavedState:
    """Return the state of a checkpoint. Raises UserError if any file of it is damaged or missing."""
    with read_errors(path / STATE, "it is passed over"):
        text = (path / STATE).read_text(encoding="utf-8")
        state = SavedState.of(json.loads(text))
    if f"{PREFIX}{state.progress.step}" != path.name:
        raise UserError(f"{path / STATE} is of step {state.progress.step}; it is passed over.")
    for file in tensor_files(path):
        with read_errors(file, "it is passed over"):
            loaded, metadata = _tensors(file)
            if metadata.get("checksum") not in (None, checksum(loaded)):
                raise UserError(f"{file} was changed or damaged after it was written; it is passed over.")
            if metadata.get("state") not in (None, checksum_of_text(text)):
                raise UserError(f"{path / STATE} was changed or damaged after it was written; it is passed over.")
            if name := not_finite(loaded, set(loaded)) if "checksum" not in metadata else "":
                raise UserError(f"{file} has values in '{name}' that are not finite; it is passed over.")
    return state


def tensor_files(path: Path) -> list[Path]:
    """Return the files of all processes. Raises UserError when one is missing."""
    files = sorted(path.glob("tensors-*-of-*.safetensors"))
    counts = {file.stem.rpartition("-of-")[2] for file in files}
    if counts != {str(len(files))}:
        raise UserError(f"{path} lacks a file of tensors; it is passed over.")
    return files


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
                kept = saved.below(f"optimizer.{name}.")
                if kept and {*kept} != MOMENTS:
                    raise UserError(f"{path} lacks moments of '{name}'; remove this checkpoint and resume again.")
                for moment in kept:
                    like = torch.zeros_like(parameter) if moment != "step" else torch.zeros((), device=parameter.device)
                    moments[moment] = saved.copy_into(f"optimizer.{name}.{moment}", like, world)
                if moments:
                    optimizer.state[parameter] = moments


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


class SavedTensors:
    """Tensors of a checkpoint, assembled from the files of all processes."""

    def __init__(self, path: Path):
        self.path = path
        self.files = [safe_open(file, "pt") for file in tensor_files(path)]
        self.pieces: dict[str, list[tuple[int, Any]]] = {}
        for file in self.files:
            begins = json.loads((file.metadata() or {}).get("begins", "{}"))
            for name in file.keys():  # noqa: SIM118
                self.pieces.setdefault(name, []).append((begins.get(name, [0])[0], file))

    def below(self, prefix: str) -> list[str]:
        """Return the rest of all names with this prefix, if it has no further dot."""
        matched = (name.removeprefix(prefix) for name in self.pieces if name.startswith(prefix))
        return [rest for rest in matched if "." not in rest]

    def copy_into(self, name: str, tensor: Tensor, world: World) -> Tensor:
        """Fill a tensor, or this process's shard of it. Raises UserError when rows are missing in the checkpoint."""
        shard = local(tensor)
        first, end = (
            rows_of_process(tensor, world) if isinstance(tensor, DTensor) else (0, len(shard) if shard.ndim else 1)
        )
        filled = 0
        for begin, file in self.pieces.get(name, []):
            self._check(name, file.get_slice(name), tensor)
            if shard.ndim == 0:
                shard.copy_(file.get_tensor(name))
                filled = 1
                break
            saved = file.get_slice(name)
            rows = slice(max(first, begin), min(end, begin + saved.get_shape()[0]))
            if rows.start < rows.stop:
                shard[rows.start - first : rows.stop - first].copy_(saved[rows.start - begin : rows.stop - begin])
                filled += rows.stop - rows.start
        if filled != end - first:
            raise UserError(f"{self.path} lacks a part of '{name}'; remove this checkpoint and resume again.")
        return tensor

    def _check(self, name: str, saved: Any, tensor: Tensor) -> None:
        """Raise UserError for a saved tensor of another type or another shape behind the first dimension."""
        shape = saved.get_shape()
        if saved.get_dtype() not in SAVED_AS.get(tensor.dtype, ()) or shape[1:] != list(tensor.shape[1:]):
            raise UserError(
                f"{self.path} has {saved.get_dtype()} {shape} for '{name}', which is {tensor.dtype} "
                f"{list(tensor.shape)}; remove this checkpoint and resume again."
            )


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def rows_of_process(tensor: DTensor, world: World) -> tuple[int, int]:
    """Return first and last row (exclusive) of this process's shard: FSDP2 splits dimension 0 like `torch.chunk`."""
    size = -(-len(tensor) // world.size)
    first = min(world.rank * size, len(tensor))
    return first, first + len(tensor.to_local())
