"""Sizes of files and functions, and names of classes: a reader finds each part by its name, and takes it in at once."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import polymodal as pm

PACKAGE = Path(pm.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = dict.fromkeys(("training", "evaluation", "serving", "cli"), 300)  # of a file in the folder
MAX_RECIPE_LINES, MAX_FUNCTION_LINES = 240, 60

# Exported beside the weights, where nothing of this package is there: they repeat classes under the same names.
STANDALONE = sorted((PACKAGE / "serving" / "export").glob("modeling_*.py"))
# Each recipe's file has a class of this name, by which the recipe is found.
ONE_PER_FILE = {"Recipe"}


def place(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def named_classes(file: Path) -> Iterator[str]:
    """Names of classes that other files may import, but not of protocols, which describe the class of their name.

    Classes inside functions, such as the options of a command, and private ones are seen by their own file alone.
    """
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if "Protocol" not in bases:
                yield node.name


def lines_of(files: list[Path]) -> dict[str, int]:
    return {place(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}


@pytest.mark.parametrize("folder", MAX_LINES)
def test_files_are_short(folder: str) -> None:
    lines = lines_of([file for file in FILES if file.is_relative_to(PACKAGE / folder)])
    assert lines
    assert {file: count for file, count in lines.items() if count > MAX_LINES[folder]} == {}


def test_recipes_are_short() -> None:
    lines = lines_of([file for file in FILES if file.match("recipes/*/*.py")])
    assert len(lines) > 20
    assert {file: count for file, count in lines.items() if count > MAX_RECIPE_LINES} == {}


def test_functions_are_short() -> None:
    lines = [
        (place(file), node.name, node.end_lineno - node.lineno + 1)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    assert len(lines) > 1000
    assert [one for one in lines if one[2] > MAX_FUNCTION_LINES] == []


def test_names_of_classes_are_unique() -> None:
    files: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        if file not in STANDALONE:
            for name in named_classes(file):
                files[name].append(place(file))
    assert STANDALONE
    assert len(files) > 300
    assert files.keys() >= ONE_PER_FILE
    assert {name: of for name, of in files.items() if len(of) > 1 and name not in ONE_PER_FILE} == {}
