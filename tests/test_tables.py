"""The generated tables of the README and of the documentation are up to date, and the README stays short."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import tables
from polymodal import recipes


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == tables.rewritten(page), "run `make pages`"


def test_a_stale_table_is_rewritten_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- recipes -->\n| old |\n<!-- /recipes -->\nafter\n", encoding="utf-8")
    text = tables.rewritten(page)
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


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) - len(recipes.entries()) <= 101, "120 lines with the first 19 recipes"
