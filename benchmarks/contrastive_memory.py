"""Memory of the contrastive losses at a large batch, against the plain formulas that hold the full matrix.

python benchmarks/contrastive_memory.py [--batch 32768] [--dim 512]    (Linux)

Each loss runs forward and backward in a process of its own; its peak resident memory above that of its inputs and
gradients is compared with the size of the batch x batch matrix. Gradients are compared with the plain formula's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from polymodal.objectives.contrastive import info_nce, siglip_loss


def inputs(batch: int, dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(batch, dim, generator=generator), dim=1) for _ in range(2))
    return [value.requires_grad_() for value in (a, b, torch.tensor(10.0), torch.tensor(-5.0))]


def plain_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    logits, labels = scale * a @ b.T, torch.arange(len(a))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_sigmoid(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(a)) - 1
    return -F.logsigmoid(signs * (scale * a @ b.T + bias)).sum() / len(a)


LOSSES = {"info_nce": (info_nce, plain_info_nce, 3), "sigmoid": (siglip_loss, plain_sigmoid, 4)}


def resident(line: str) -> int:
    """Bytes of memory: now (VmRSS), or the most since the last reset (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(row.split()[1] for row in status.splitlines() if row.startswith(line)))


def measure(name: str, batch: int, dim: int) -> None:
    """Prints bytes above the inputs and their gradients, which any way of computing the loss needs, and seconds."""
    loss, _, count = LOSSES[name]
    leaves = inputs(batch, dim)[:count]
    gradients = sum(leaf.nbytes for leaf in leaves)
    # The first call of each kind of kernel allocates its own buffers; a tiny one keeps them out of the measure.
    loss(*inputs(64, dim)[:count]).backward()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, started = resident("VmRSS"), time.perf_counter()
    loss(*leaves).backward()
    print(resident("VmHWM") - before - gradients, time.perf_counter() - started)


def largest_gradient_error(name: str, batch: int, dim: int) -> float:
    """The largest difference to the plain formula's gradient, relative to the largest entry of that gradient."""
    ours, plain, count = LOSSES[name]
    one, other = inputs(batch, dim)[:count], inputs(batch, dim)[:count]
    ours(*one).backward()
    plain(*other).backward()
    return max(float((x.grad - y.grad).abs().max() / y.grad.abs().max()) for x, y in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32768)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--measure", choices=LOSSES)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.batch, options.dim)
        return
    matrix = options.batch**2 * 4
    print(f"batch {options.batch:,} x {options.dim}; the matrix alone has {matrix / 2**20:,.0f} MiB")
    for name in LOSSES:
        sizes = ["--batch", str(options.batch), "--dim", str(options.dim)]
        command = [sys.executable, __file__, *sizes, "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        extra, seconds = map(float, done.stdout.split())
        error = largest_gradient_error(name, min(options.batch, 4096), options.dim)
        print(
            f"{name:<9} peak extra memory {extra / 2**20:6,.0f} MiB, 1/{matrix / extra:,.0f} of the matrix; "
            f"{seconds:.1f} s; gradients equal to {error:.1e}"
        )


if __name__ == "__main__":
    main()
