"""Checksums of a run's files, by which damage is found: tensors, and the small files beside them.

CRC-32 finds damage and edits by hand; somebody who intends to deceive can write a fitting one.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of contiguous tensors on the CPU: their names, types, shapes and values."""
    total = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="surrogatepass"), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def checksum_of_text(text: str) -> str:
    """Return a checksum of a text."""
    return checksum_of_bytes(text.encode())


def checksum_of_bytes(content: bytes) -> str:
    """Return a checksum of bytes."""
    return f"{zlib.crc32(content):08x}"


def checksums_of_files(folder: Path) -> dict[str, str]:
    """Return the checksum of each file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): checksum_of_bytes(file.read_bytes()) for file in files}
