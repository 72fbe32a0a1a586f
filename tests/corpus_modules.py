"""Modules of built-in corpora, each of which is hidden behind the function of its name."""

from __future__ import annotations

import importlib
from typing import Any


def module(name: str) -> Any:
    return importlib.import_module(f"polymodal.corpora.{name}")
