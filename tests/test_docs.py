"""The documentation: its commands and code run, its links lead somewhere."""

from __future__ import annotations

import ast
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
        method = [word for word in arguments[:1] if name in ("train", "curate") and not word.endswith(".py")]
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["polymodal", name, *method, "--help"])
        with contextlib.suppress(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        missing = [flag for flag in flags if not re.search(rf"{re.escape(flag)}(?![\w.-])", said)]
        assert not missing, (name, *arguments)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; building takes some 20 seconds of one core."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "POLYMODAL_CACHE": str(folder / "empty")}
    done = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_site_has_its_pages(site):
    for page in ("index", "recipes/sparc", "corpora/emoji", "reference/objectives", "api/running", "command-line"):
        assert (site / f"{page}.html").is_file()
    recipe = (site / "recipes" / "sparc.html").read_text(encoding="utf-8")
    place = "reference/recipes.dual_encoders.html#polymodal.recipes.dual_encoders.sparc"
    assert place in recipe, "a link to the source leads to the reference"
    settings = (site / "api" / "settings.html").read_text(encoding="utf-8")
    assert "polymodal.training.runtime.RuntimeConfig.micro_batch" in settings, "fields are shown"


@pytest.mark.slow
def test_the_site_is_small_and_needs_no_network(site):
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 15e6
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?([^\"' >]+)", text)
        loaded += re.findall(r"<link\b[^>]*?\bhref=[\"']?([^\"' >]+)", text)
        assert not [place for place in loaded if re.match(r"(https?:)?//", place)], page
        assert 'class="mermaid"' not in text, "diagrams are drawn by a script from a network"


@pytest.mark.slow
def test_every_page_is_reached_and_every_link_has_an_end(site):
    """From the landing page, by relative links to files, so that it works in a folder."""
    reached, left, anchors, wanted = set(), [site / "index.html"], {}, []
    while left:
        page = left.pop()
        if page in reached:
            continue
        reached.add(page)
        text = page.read_text(encoding="utf-8")
        anchors[page] = {*re.findall(r"\bid=[\"']?([^\"' >]+)", text)}
        for link in re.findall(r"<a\b[^>]*?\bhref=[\"']([^\"']+)", text):
            if re.match(r"(\w+:|//)", link):
                continue
            place, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / place)) if place else page
            assert target.is_file(), (page, link)
            if target.suffix == ".html":
                left.append(target)
                wanted += [(page, target, anchor)] if anchor else []
    assert {*site.rglob("*.html")} - reached <= {site / "404.html"}
    missing = [(page.name, target.name, anchor) for page, target, anchor in wanted if anchor not in anchors[target]]
    assert not missing, missing[:10]


def test_the_command_line_reference_has_every_command_and_flag(monkeypatch, capsys):
    monkeypatch.syspath_prepend(DOCS.parent / "tools")
    import site_pages

    text = site_pages.command_line()
    monkeypatch.setenv("COLUMNS", "200")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert [*sections] == [*cli.COMMANDS]
    for name in ("train", "search", "serve", "compare"):
        monkeypatch.setattr(sys, "argv", ["polymodal", name, "--help"])
        status_of_main()
        flags = {*re.findall(r"(?<![\w-])--[\w.-]*\w", capsys.readouterr().out)} - {"--help"}
        assert flags, name
        assert not [flag for flag in flags if flag not in sections[name]], name
    assert "**Data**" in sections["train"]


def test_figures_are_those_of_their_script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS.parent / "tools")
    import figures

    for name, draw in figures.FIGURES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == draw(), f"{name}: run python tools/figures.py"


def test_error_sentences_of_the_troubleshooting_page_are_in_the_source():
    """Between the names that are left out, as they stand in the source."""
    files = (DOCS.parent / "src").rglob("*.py")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(node.value for node in nodes if isinstance(node.value, str))
    titles = re.findall(r"^### (`.*`)", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    assert len(titles) >= 15
    for title in titles:
        for part in re.split(r"…|` nan or inf, `", title.strip("`")):
            assert part.strip(" `'") in said, (title, part)


@pytest.mark.slow
def test_everything_imports_where_modules_of_unix_are_missing():
    """Windows has none of these."""
    program = """
import contextlib, importlib, pkgutil, sys
with contextlib.suppress(ImportError):
    import psutil  # which imports what its system has
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource"))
import polymodal
for module in pkgutil.walk_packages(polymodal.__path__, "polymodal."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
