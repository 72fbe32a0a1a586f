"""tools/shared_files.py on a repository made for it; and folders have their READMEs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import shared_files

SOURCE = ROOT / "src" / "polymodal"
FOLDERS = "modalities corpora layers encoders objectives models training curation attacks recipes reproduce serving cli"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        name = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *name, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    def write(*paths: str, text: str) -> None:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        git("add", "-A")
        git("commit", "-m", text)

    git("init")
    write("README.md", "src/polymodal/types.py", "src/polymodal/layers/fusion.py", text="first")
    recipe = "src/polymodal/recipes/science/tip.py"
    write(recipe, "src/polymodal/types.py", "tests/test_tip.py", "docs/recipes/tip.md", "README.md", text="second")
    write("src/polymodal/layers/fusion.py", "src/polymodal/recipes/science/_base.py", text="third")
    return tmp_path


@pytest.mark.parametrize(
    ("commit", "recipes", "shared"),
    [
        ("HEAD~1", ["src/polymodal/recipes/science/tip.py"], ["src/polymodal/types.py"]),
        ("HEAD", [], ["src/polymodal/layers/fusion.py"]),
    ],
)
def test_shared_files_are_those_outside_of_recipes_tests_and_docs(
    repository: Path, commit: str, recipes: list[str], shared: list[str]
) -> None:
    changed = shared_files.changes(commit, repository)
    assert shared_files.added_recipes(changed) == recipes
    assert shared_files.shared_files(changed) == shared


def test_the_limit_holds_for_commits_that_add_a_recipe(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--repository", str(repository)]
    assert shared_files.main(["HEAD~1", "--limit", "0", *place]) == 1
    assert "shared: src/polymodal/types.py" in capsys.readouterr().out
    assert shared_files.main(["HEAD~1", "--limit", "1", *place]) == 0
    assert shared_files.main(["HEAD", "--limit", "0", *place]) == 0, "it adds no recipe"


@pytest.mark.parametrize("folder", FOLDERS.split())
def test_a_folder_says_what_is_in_it_and_how_to_add_a_file(folder: str) -> None:
    text = (SOURCE / folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {folder}: ")
    assert "```mermaid" in text
    assert "To add a file: " in text
