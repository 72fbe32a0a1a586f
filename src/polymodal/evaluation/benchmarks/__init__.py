"""The benchmarks, one file each. The list is the folder itself; a file's value `benchmark` says what it is."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polymodal.evaluation.benchmark import Benchmark


def names() -> list[str]:
    """All names, without importing anything: those of the files, with - for _."""
    return sorted(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("[!_]*.py"))


@functools.cache
def entries() -> dict[str, Benchmark]:
    """All benchmarks by name."""
    return {name: importlib.import_module(f"{__name__}.{name.replace('-', '_')}").benchmark for name in names()}
