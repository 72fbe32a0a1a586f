"""The documentation: its commands and code run, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def shortened(command: str) -> list[str]:
    """The command with a budget of a few steps: what it does, not how well."""
    command = re.sub(r"--budget \S+", "--budget 3steps", command)
    return shlex.split(re.sub(r"--seeds \d+", "--seeds 1", command), comments=True)


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_every_command_and_code_block_of_a_tutorial_runs(page, tmp_path):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(command: list[str]) -> None:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)

    for kind, text in blocks:
        if kind == "python":
            run([sys.executable, "-c", text])
            continue
        for line in text.splitlines():
            assert line.startswith("$ polymodal "), line
            run([sys.executable, "-m", *shortened(line[2:])])


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "POLYMODAL_CACHE": str(tmp_path / "empty")}
    done = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "recipes/sparc/index", "corpora/emoji/index", "reference/objectives/contrastive/index"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    recipe = (tmp_path / "site" / "recipes" / "sparc" / "index.html").read_text(encoding="utf-8")
    assert "reference/recipes/dual_encoders/sparc" in recipe, "a link to the source leads to the reference"
