"""The generated tables of the README and of the documentation are up to date, and the README stays short."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import tables
from polymodal import recipes
from polymodal.reproduce import page


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_tables_of_a_page_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == tables.rewritten(path), "run `make pages`"


def test_a_stale_table_is_rewritten_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- recipes -->\n| old |\n<!-- /recipes -->\nafter\n", encoding="utf-8")
    text = tables.rewritten(path)
    assert text.startswith("before\n<!-- recipes -->\n| recipe |")
    assert text.endswith("<!-- /recipes -->\nafter\n")
    assert "| old |" not in text
    assert "`clip`" in text


def test_every_recipe_belongs_to_a_task_and_every_task_has_a_method() -> None:
    of = {name: tables.tasks_of(entry) for name, entry in recipes.entries().items()}
    assert not [name for name, tasks in of.items() if not tasks]
    assert {task.page for tasks in of.values() for task in tasks} == {task.page for task in tables.TASKS}


def test_tasks_follow_from_capabilities() -> None:
    entries = recipes.entries()
    assert [task.page for task in tables.tasks_of(entries["siglip"])][:2] == ["retrieval", "zero-shot-classification"]
    assert [task.page for task in tables.tasks_of(entries["tip"])] == ["missing-modalities"], "it has no text"
    assert [task.page for task in tables.tasks_of(entries["mono_internvl"])] == ["vqa-and-captioning"]


def test_terms_of_a_docstring_are_a_table_of_their_own() -> None:
    text = "NAME: idea.\n\nText of\nthe recipe.\n\nTerms: ITC = losses.itc, PEM (entities) =\nlosses.pem."
    assert page.split_terms(text) == (
        "NAME: idea.\n\nText of\nthe recipe.",
        {"ITC": "losses.itc", "PEM (entities)": "losses.pem"},
    )
    assert page.split_terms("NAME: no terms.") == ("NAME: no terms.", {})


PACKAGE = Path(recipes.__file__).parents[1]


def identifiers(file: Path) -> set[str]:
    """Names of functions, classes, fields, arguments and attributes, and strings such as the names of losses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                found.add(name)
    return found


def imported_files(file: Path) -> set[Path]:
    """The files of the package that a file imports from."""
    modules = {
        node.module
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("polymodal.")
    }
    places = [PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in modules]
    return {place for place in places if place.is_file()}


@pytest.mark.parametrize("name", recipes.entries())
def test_terms_of_a_recipe_are_names_of_its_code(name: str) -> None:
    """A flag, a file below the package, or the last part of a dotted name in the recipe or what it imports from."""
    file = recipes.entries()[name].file
    _, terms = page.split_terms(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
    near = {file, *imported_files(file)}
    every = near.union(*map(imported_files, near))
    names = set[str]().union(*map(identifiers, every)) | {one.stem for one in every}
    for term, code in terms.items():
        for part in re.split(r" and | with | \(", code):
            word = re.sub(r"=.*", "", part.rstrip(")").removeprefix("--no-").removeprefix("--")).replace("-", "_")
            module, _, last = word.rpartition(".")
            elsewhere = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
            known = names | (identifiers(elsewhere) if elsewhere.is_file() else set())
            assert last in known or PACKAGE.joinpath(*word.split(".")).with_suffix(".py").is_file(), f"{term} = {code}"


@pytest.mark.parametrize("name", recipes.entries())
def test_the_page_of_a_recipe_names_a_command_for_own_data(name: str) -> None:
    lines = page.own_data(recipes.entries()[name])
    command = next(line for line in lines if line.startswith("$ polymodal "))
    verb = {"security": "attack", "metrics": "score", "data_curation": "curate"}
    assert command.split()[2:4] == [verb.get(recipes.entries()[name].family, "train"), name]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
