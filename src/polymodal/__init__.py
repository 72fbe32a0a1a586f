"""Pre-train any modality with any published method, and know which one works on your data.

import polymodal as pm
run = pm.train("sparc", pm.corpora.emoji(), "60s")
run.embed(text="a red fruit")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from polymodal.claim import Claim
from polymodal.errors import UserError
from polymodal.types import Budget, Paper, Stage

if TYPE_CHECKING:
    from polymodal import corpora, recipes
    from polymodal.api import compare, evaluate, train, tune
    from polymodal.training import Run, RuntimeConfig, load_run

__version__ = "0.1.0"

_LAZY = {  # imported on first use, so that `import polymodal` does not wait for torch
    "RuntimeConfig": "polymodal.training",
    "Run": "polymodal.training",
    "compare": "polymodal.api",
    "evaluate": "polymodal.api",
    "load_run": "polymodal.training",
    "train": "polymodal.api",
    "tune": "polymodal.api",
}

__all__ = [
    "Budget",
    "Claim",
    "Paper",
    "Run",
    "RuntimeConfig",
    "Stage",
    "UserError",
    "compare",
    "corpora",
    "evaluate",
    "load_run",
    "recipes",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in ("corpora", "recipes"):
        return importlib.import_module(f"polymodal.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'polymodal' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
