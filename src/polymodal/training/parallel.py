"""Distributed training: the processes of a run, collectives, DDP and FSDP2."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
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
    """This process among `size` processes. The first one (rank 0) writes files and reports to the user."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def all_reduce_max(self, *values: float) -> list[float]:
        """Return the maximum of each value over all processes."""
        if self.size == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def all_gather_object(self, value: Any) -> list[Any]:
        """Gather a picklable value of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its mean over all processes, in one all-reduce."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def launched_together() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Return whether this process is the only one, or rank 0 of torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def check_device(device: str | None) -> None:
    """Raise UserError for a device that torch does not know, or that this machine does not have."""
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from error


_trainings = itertools.count()


@contextmanager
def join_world(device: str | None) -> Iterator[World]:
    """Join the processes that torchrun started; a world of one without torchrun, and in threads.

    device: by default this process's GPU when there is one. Raises UserError for an unavailable device.
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
    """Module with the method's `losses` as `forward`, as DistributedDataParallel needs."""

    def __init__(self, method: nn.Module, name: str):
        super().__init__()
        self.method = method
        self.name = name

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return getattr(self.method, self.name)(batch)


def parallelize(
    method: Any,
    world: World,
    parallel: Parallel,
    whole_steps: bool,
    all_used: bool,
    losses: str = "losses",
    forward_methods: Sequence[str] = (),
) -> Any:
    """Return a callable that computes losses and averages gradients over processes in its backward pass.

    ddp: every process holds the whole model. fsdp: parameters, gradients and optimizer state are sharded (FSDP2), by
    the entries of every ModuleList (transformer blocks), and by modules with `shard_separately`. whole_steps: whether a
    step is a single backward pass; otherwise `World.all_reduce_mean` follows the last one. all_used: whether every
    trainable parameter gets a gradient in every batch; otherwise DDP searches for unused ones in each step.
    losses: the name of the method's losses. forward_methods: further methods that use parameters, for fsdp.
    """
    if world.size == 1:
        return getattr(method, losses)
    if parallel == "fsdp":
        shard(method, world, (losses, *forward_methods))
        return getattr(method, losses)
    if not whole_steps or not any(parameter.requires_grad for parameter in method.parameters()):
        return getattr(method, losses)
    return DistributedDataParallel(_Losses(method, losses), find_unused_parameters=not all_used)


def shard(method: nn.Module, world: World, forward_methods: Sequence[str] = ()) -> None:
    """Shard a method by FSDP2 in place; its forward methods (`losses`, `embed`, ...) gather the parameters they
    need."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in reversed(list(method.modules())):  # what is inside first
        entries = module if isinstance(module, nn.ModuleList) else [module] * getattr(module, "shard_separately", False)
        for entry in entries:
            if any(True for _ in entry.parameters()):
                fully_shard(entry, mesh=mesh)
    scalars = {parameter for parameter in method.parameters() if parameter.ndim == 0}  # which cannot be cut
    fully_shard(method, mesh=mesh, ignored_params=scalars)
    register_forward_methods(method, (*TRAINING_METHODS, *forward_methods))


def register_forward_methods(method: nn.Module, names: Iterable[str]) -> None:
    """Let further methods of a module under FSDP2 gather the parameters that they need; nothing without FSDP2."""
    for name in dict.fromkeys(names) if isinstance(method, FSDPModule) else ():
        if hasattr(method, name) and name not in vars(method):
            register_fsdp_forward_method(method, name)


def reshard(method: nn.Module) -> None:
    """Reshard parameters that FSDP2 keeps gathered after a forward pass without a backward pass.

    Until then `parameters()` would return copies that are not trained.
    """
    for module in method.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered if it is sharded; a collective that every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_batch(batch_size: int, micro_batch: int, world_size: int) -> None:
    """Raise UserError when the batch does not divide over the processes and their micro-batches."""
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
