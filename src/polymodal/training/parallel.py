"""The processes of a run: who this one is, what all agree on, and how a model is spread over them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from polymodal.errors import UserError

Parallel = Literal["ddp", "fsdp"]
TRAINING_METHODS = ("losses", "encode", "contrastive_losses")


@dataclass(frozen=True)
class World:
    """One process of `count`. The first one writes files and speaks to the user."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def all_reduce_max(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def all_gather_object(self, value: Any) -> list[Any]:
        """A picklable value of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its mean over all processes, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def launched_together() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process is the only one, or the first one that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def check_device(device: str | None) -> None:
    """Raises UserError for a device that torch does not know, or that this machine has not."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from error


_trainings = itertools.count()


@contextmanager
def join_world(device: str | None) -> Iterator[World]:
    """Join the other processes that torchrun started; alone without torchrun, and in a thread.

    device: where to compute; by default this process's GPU when there is one. Raises UserError for one that is not
    there.
    """
    check_device(device)
    gpu = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    together = launched_together() and threading.current_thread() is threading.main_thread()
    if gpu and together and device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    where = torch.device(device or ("cuda" if gpu else "cpu"))
    if not together:
        yield World(0, 1, where)
        return
    already = dist.is_initialized()
    if not already:  # figures to agree on lie on the CPU, so that a GPU is never waited for
        store, rank, count = next(dist.rendezvous("env://"))
        own = dist.PrefixStore(f"training {next(_trainings)}", store)  # not the addresses of an earlier one
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=own, rank=rank, world_size=count)
    yield World(dist.get_rank(), dist.get_world_size(), where)
    if not already:  # not after an error: the other processes may be waiting in a collective
        dist.barrier()  # nothing is under way any more
        dist.destroy_process_group()


class _Losses(nn.Module):
    """`losses` as `forward`, which is what DistributedDataParallel calls."""

    def __init__(self, method: nn.Module):
        super().__init__()
        self.method = method

    def forward(self, batch: Any) -> dict[str, Tensor]:
        method: Any = self.method
        return method.losses(batch)


def parallelize(method: Any, world: World, parallel: Parallel, whole_steps: bool, all_used: bool) -> Any:
    """A callable that gives the losses of a batch and averages gradients over processes in its backward pass.

    ddp: every process holds the whole model. fsdp: parameters, gradients and optimizer state are cut into as many
    parts as there are processes (FSDP2), by the entries of every ModuleList, which are what transformers repeat, and by
    modules that say `shard_separately`.
    whole_steps: whether a step is one backward pass; when it is several, `World.all_reduce_mean` comes after the last.
    all_used: whether every trainable parameter has a part in every batch; else each step looks for those that have.
    """
    if world.size == 1:
        return method.losses
    if parallel == "fsdp":
        shard(method, world)
        return method.losses
    if not whole_steps or not any(parameter.requires_grad for parameter in method.parameters()):
        return method.losses
    return DistributedDataParallel(_Losses(method), find_unused_parameters=not all_used)


def shard(method: nn.Module, world: World) -> None:
    """FSDP2 on the method in place; what training calls of it gathers the parameters that it needs."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in reversed(list(method.modules())):  # what is inside first
        entries = module if isinstance(module, nn.ModuleList) else [module] * getattr(module, "shard_separately", False)
        for entry in entries:
            if any(True for _ in entry.parameters()):
                fully_shard(entry, mesh=mesh)
    scalars = {parameter for parameter in method.parameters() if parameter.ndim == 0}  # which cannot be cut
    fully_shard(method, mesh=mesh, ignored_params=scalars)
    register_forward_methods(method, TRAINING_METHODS)


def register_forward_methods(method: nn.Module, names: Iterable[str]) -> None:
    """Let further methods of a module under FSDP2 gather the parameters that they need; nothing without FSDP2."""
    for name in names if isinstance(method, FSDPModule) else ():
        if hasattr(method, name) and name not in vars(method):
            register_fsdp_forward_method(method, name)


def reshard(method: nn.Module) -> None:
    """Let go of what FSDP2 keeps gathered after a forward pass that no backward pass follows.

    Until then `parameters()` would name copies, which nobody trains.
    """
    for module in method.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is spread over processes; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_batch(batch_size: int, micro_batch: int, world_size: int) -> None:
    """Raises UserError when the batch does not divide over the processes and their micro-batches."""
    if batch_size % world_size:
        raise UserError(
            f"A batch of {batch_size} does not divide over {world_size} processes; use --batch-size "
            f"{batch_size // world_size * world_size or world_size}."
        )
    if micro_batch and (batch_size // world_size) % micro_batch:
        raise UserError(
            f"Micro-batches of {micro_batch} do not divide the {batch_size // world_size} examples of a process; use a "
            "divisor as --micro-batch."
        )
