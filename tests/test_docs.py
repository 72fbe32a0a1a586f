"""The documentation: its commands and code run, its links lead somewhere."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from polymodal import cli

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def shortened(command: str) -> list[str]:
    """The command with a budget of a few steps: what it does, not how well."""
    command = re.sub(r"--budget \S+", "--budget 3steps", command)
    return shlex.split(re.sub(r"--seeds \d+", "--seeds 1", command), comments=True)


def status_of_main() -> object:
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.usefixtures("emoji_is_small")
@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_every_command_and_code_block_of_a_tutorial_runs(page, tmp_path, monkeypatch, capsys):
    """In this process: importing everything anew for every command would take most of the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
            continue
        for line in text.splitlines():
            assert line.startswith("$ polymodal "), line
            monkeypatch.setattr(sys, "argv", shortened(line[2:]))
            assert status_of_main() == 0, (line, capsys.readouterr().err)


def commands_of(page: Path) -> list[list[str]]:
    """Every polymodal command of a page, without what starts its processes."""
    lines = re.findall(r"^\$ (.*)$", page.read_text(encoding="utf-8"), re.M)
    written = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("polymodal") + 1 :] for words in written if "polymodal" in words]


FOLDERS = (DOCS, DOCS / "tutorials", DOCS / "tasks")
PAGES = [DOCS.parent / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("*.md")))]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_commands_and_flags_of_a_page_exist(page, capsys, monkeypatch):
    for name, *arguments in commands_of(page):
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        if name.startswith("-"):
            continue
        assert name in cli.COMMANDS, name
        method = [word for word in arguments[:1] if name == "train" and not word.endswith(".py")]
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["polymodal", name, *method, "--help"])
        with contextlib.suppress(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        missing = [flag for flag in flags if not re.search(rf"{re.escape(flag)}(?![\w.-])", said)]
        assert not missing, (name, *arguments)


def test_the_site_builds_and_its_links_lead_somewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "POLYMODAL_CACHE": str(tmp_path / "empty")}
    done = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index", "recipes/sparc/index", "corpora/emoji/index", "reference/objectives/contrastive/index"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    recipe = (tmp_path / "site" / "recipes" / "sparc" / "index.html").read_text(encoding="utf-8")
    assert "reference/recipes/dual_encoders/sparc" in recipe, "a link to the source leads to the reference"
