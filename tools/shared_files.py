"""Print which shared files a commit touched, for the rule that a recipe adds files and changes few others.

`python tools/shared_files.py [COMMIT] [--limit N]`: COMMIT is HEAD unless given. With a limit, a commit that adds a
recipe and touches more shared files than that exits with 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "src/polymodal/"
OF_A_RECIPE = (f"{PACKAGE}recipes/", f"{PACKAGE}claims/", f"{PACKAGE}reproduce/results/", "tests/", "docs/")
GENERATED = ("README.md",)


def changes(commit: str, repository: Path) -> list[tuple[str, str]]:
    """(status, path) of every file that the commit touched, against its first parent. Status: A, M, D, R ..."""
    command = ["git", "-C", str(repository), "diff-tree", "-r", "-m", "--first-parent", "--root", "--no-commit-id"]
    done = subprocess.run([*command, "--name-status", commit], capture_output=True, text=True, check=True)
    pairs = [line.split("\t") for line in done.stdout.splitlines()]
    return [(status[0], paths[-1]) for status, *paths in pairs]


def is_recipe(path: str) -> bool:
    """Whether the path is a recipe's file: recipes/FAMILY/NAME.py or a folder of that name, without a leading `_`."""
    parts = path.removeprefix(f"{PACKAGE}recipes/").split("/")
    return path.startswith(f"{PACKAGE}recipes/") and len(parts) >= 2 and path.endswith(".py") and parts[1][0] != "_"


def added_recipes(changed: Iterable[tuple[str, str]]) -> list[str]:
    return [path for status, path in changed if status == "A" and is_recipe(path)]


def shared_files(changed: Iterable[tuple[str, str]]) -> list[str]:
    """Paths outside of recipes, claims, their results, tests and documentation."""
    return [path for _, path in changed if not path.startswith(OF_A_RECIPE) and path not in GENERATED]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--limit", type=int, help="shared files that a commit with a new recipe may touch")
    parser.add_argument("--repository", type=Path, default=Path())
    options = parser.parse_args(arguments)
    changed = changes(options.commit, options.repository)
    added, shared = added_recipes(changed), shared_files(changed)
    for path in added:
        print(f"recipe: {path}")
    for path in shared:
        print(f"shared: {path}")
    print(f"{len(shared)} shared files")
    return int(bool(added) and options.limit is not None and len(shared) > options.limit)


if __name__ == "__main__":
    sys.exit(main())
