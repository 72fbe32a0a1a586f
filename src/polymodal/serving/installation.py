"""State of the installation: versions, devices, the cache, optional packages and programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from polymodal.corpora._cache import cache_directory

WHAT_FOR = {
    "npm": "corpora from npm packages where npm itself is missing",
    "corpora": "all built-in corpora",
    "molecules": "the corpus molecules, SMILES and SDF files of your own",
    "documents": "PDF files of your own",
    "video": "clips: methods of video, the corpus clips, clips of your own",
    "curation": "curate",
    "ray": "curate --runner ray",
    "worlds": "the corpora worlds and driving",
    "hub": "pretrained weights: --init hf:..., --vision, --text-encoder, --audio, --lm; export --to transformers",
    "index": "index, and search in an index",
    "serve": "serve",
    "page": "serve --page",
    "export": "export --to onnx and --to sentence-transformers",
    "docs": "make docs",
    "dev": "make test",
    "bench": "benchmarks beside open_clip",
}
PROGRAMS = {  # any of these names -> what for
    ("npm",): "corpora from npm packages, such as emoji",
    ("espeak-ng",): "the corpus speech",
    ("chromium", "chromium-browser", "google-chrome"): "the corpus pages",
}


@dataclass(frozen=True)
class Component:
    """Optional component. missing: packages or programs to install; empty if it is ready."""

    name: str
    what_for: str
    missing: tuple[str, ...]


def versions() -> dict[str, str]:
    """Return the versions of polymodal, Python and the main dependencies."""
    packages = ("polymodal", "torch", "numpy", "datasets", "grain", "tokenizers", "transformers")
    return {"python": platform.python_version()} | {name: _version(name) or "not installed" for name in packages}


def devices() -> list[str]:
    """Return processor and GPUs, with their memory."""
    import torch

    found = [f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads for torch"]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append(f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("Apple GPU (--device mps)")
    return found


def disk() -> tuple[Path, int, int]:
    """Return the cache folder, its size in bytes, and the free bytes of its disk."""
    cache = cache_directory()
    held = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.is_dir() else 0
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return cache, held, shutil.disk_usage(there).free


def extras() -> list[Component]:
    """Return the optional dependency groups (`pip install 'polymodal[NAME]'`), with missing packages."""
    try:
        about = importlib.metadata.metadata("polymodal")
    except importlib.metadata.PackageNotFoundError:
        return []
    names = about.get_all("Provides-Extra") or []
    return [Component(name, WHAT_FOR.get(name, ""), tuple(sorted(_missing(name)))) for name in names]


def programs() -> list[Component]:
    """Return the external programs that some corpora need."""
    return [
        Component(names[0], what_for, () if any(shutil.which(name) for name in names) else (names[0],))
        for names, what_for in PROGRAMS.items()
    ]


def _missing(extra: str) -> Iterator[str]:
    """Yield the unmet requirements of an extra, and of extras that it includes."""
    for line in importlib.metadata.requires("polymodal") or ():
        needed = Requirement(line)
        if needed.marker is None or not needed.marker.evaluate({"extra": extra}):
            continue
        if needed.name == "polymodal":
            for other in needed.extras:
                yield from _missing(other)
        elif (held := _version(needed.name)) is None or not needed.specifier.contains(held, prereleases=True):
            yield f"{needed.name}{needed.specifier}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
