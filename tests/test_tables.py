"""The generated tables of the README and of the documentation are up to date, and the README stays short."""

from __future__ import annotations

import ast
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


@pytest.mark.parametrize("name", recipes.entries())
def test_terms_of_a_recipe_are_names_of_its_file(name: str) -> None:
    entry = recipes.entries()[name]
    code = ast.parse(entry.file.read_text(encoding="utf-8"))
    _, terms = page.split_terms(ast.get_docstring(code) or "")
    names = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    names |= {node.name for node in ast.walk(code) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not [term for term in terms.values() if term.rpartition(".")[2] not in names]


@pytest.mark.parametrize("name", recipes.entries())
def test_the_page_of_a_recipe_names_a_command_for_own_data(name: str) -> None:
    lines = page.own_data(recipes.entries()[name])
    command = next(line for line in lines if line.startswith("$ polymodal "))
    verb = {"security": "attack", "metrics": "score", "data_curation": "curate"}
    assert command.split()[2:4] == [verb.get(recipes.entries()[name].family, "train"), name]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) - len(recipes.entries()) <= 101, "120 lines with the first 19 recipes"
