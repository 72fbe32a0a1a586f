"""The notebooks in `examples/` run from top to bottom, and are kept without outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polymodal as pm

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def code_of(notebook: Path) -> list[str]:
    cells: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own_method", "own_pairs", "seeing_language_model"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_no_outputs(notebook: Path) -> None:
    read = json.loads(notebook.read_text(encoding="utf-8"))
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in read["cells"]}) == len(read["cells"])
    for cell in read["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(cell["source"]), notebook.name, "exec")
    assert len(notebook.read_bytes()) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    if all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")):
        import nbclient
        import nbformat

        nbclient.NotebookClient(
            nbformat.read(notebook, as_version=4), timeout=600, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
        return
    program = "\n\n".join(code_of(notebook))  # read from standard input, so that it has no file, as in a notebook
    environment = os.environ | {"PYTHONPATH": str(Path(pm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-"], input=program, text=True, capture_output=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
