"""The tasks, one file each. The list of tasks is the folder itself; a file's value `task` says what it is."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polymodal.evaluation.task import Task


@functools.cache
def entries() -> dict[str, Task]:
    """All tasks by the name of their file, in the order in which they are scored and shown."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    by_name: dict[str, Task] = {name: importlib.import_module(f"{__name__}.{name}").task for name in names}
    return dict(sorted(by_name.items(), key=lambda entry: (entry[1].order, entry[0])))
