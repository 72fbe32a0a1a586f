"""What imports what: folders only those above them, no cycles, and nothing slow where an answer is due at once."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polymodal as pm

PACKAGE = Path(pm.__file__).parent
SLOW = ("torch", "transformers", "datasets", "matplotlib", "grain", "pyarrow", "numpy")
ANSWER = """
import contextlib, json, sys
from polymodal.cli import main
sys.argv = ["polymodal", *sys.argv[1:]]
status = 0
with contextlib.redirect_stdout(sys.stderr):
    try:
        main()
    except SystemExit as ended:
        status = ended.code
print(json.dumps([status, [name for name, module in sys.modules.items() if "(source)" not in name]]))
"""


EXPORT = "polymodal.serving.export."
EXPORTED = {f"{EXPORT}modeling_polymodal_encoders"}


def imports(node: ast.AST) -> Iterator[str]:
    """What a module imports anywhere, also inside functions, but not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = EXPORT if child.level else ""  # what is written beside exported weights imports its neighbor
            assert child.level == 0 or f"{package}{child.module}" in EXPORTED
            yield from (f"{package}{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports; a name of a module counts as the module."""
    modules = {}
    for file, tree in trees().items():
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = tree
    found = {}
    for module, tree in modules.items():
        named = set(imports(tree))
        found[module] = {name if name in modules else name.rpartition(".")[0] for name in named} & {*modules}
    return found


def test_no_imports_are_circular_lazy_ones_included():
    found = graph()
    assert sum(map(len, found.values())) > 500
    list(graphlib.TopologicalSorter(found).static_order())


def test_a_cycle_is_found():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph() | {"polymodal.errors": {"polymodal.cli"}}).static_order())


def test_modules_import_from_the_modules_of_corpora_and_not_from_the_package_of_all():
    assert [module for module, imported in graph().items() if "polymodal.corpora" in imported] == []


ORDER = """
    errors constraints types claim source rng notebook
    modalities corpora data layers encoders objectives models training evaluation curation attacks
    recipes claims reproduce api serving cli __main__
"""


def test_folders_import_only_from_folders_above_them():
    order = ORDER.split()
    checked = 0
    for file, tree in trees().items():
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for_types_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node not in for_types_only:
                parts = node.module.split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                for name in names if parts[0] == "polymodal" else []:
                    if name in order:
                        checked += 1
                        assert order.index(name) <= order.index(own), f"{file} imports polymodal.{name}"
    assert checked > 100


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["list"], 0),
        (["train", "clip", "--help"], 0),
        (["train", "clip", "--paper", "--help"], 0),
        (["train", "cilp"], 2),
        (["train", "clip"], 2),
        (["train", "clip", "--corpus", "emojo"], 2),
        (["train", "clip", "--corpus", "emoji", "--scale", "0"], 2),
        (["train", "wasm", "--corpus", "emoji"], 2),
        (["show", "cilp"], 2),
        (["compare", "clip", "sprac", "--corpus", "emoji"], 2),
        (["compare", "clip", "siglip"], 2),
        (["corpora"], 0),
        (["data", "--help"], 0),
        (["data"], 2),
        (["corpora", "show", "emojo"], 2),
        (["tune", "clip", "--help"], 0),
        (["tune", "clip", "--corpus", "emoji", "--grid", "learning-rat=1"], 2),
        (["tune", "clip", "--corpus", "emoji", "--grid", "learning-rate=1e-3,x"], 2),
        (["trian"], 2),
        (["serve", "--help"], 0),
        (["ask", "--help"], 0),
        (["curate", "--help"], 0),
        (["caption", "--help"], 0),
        (["resume", "--help"], 0),
        (["search", "--help"], 0),
    ],
)
def test_help_listings_and_errors_of_the_command_line_import_nothing_slow(words, status):
    done = subprocess.run([sys.executable, "-c", ANSWER, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ended, imported = json.loads(done.stdout)
    assert (ended or 0, done.stderr != "") == (status, True)
    cheap = {f"polymodal.corpora.{name}" for name in ("_cache", "about", "registry")}
    corpora = [name for name in imported if name.startswith("polymodal.corpora.") and name not in cheap]
    assert {*SLOW} & {*imported} == set(), done.stderr
    assert corpora == []


def test_what_a_corpus_is_needs_no_corpus():
    program = "import sys, polymodal.corpora.corpus; print(*[n for n in sys.modules if n.startswith('polymodal.corp')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    light = {f"polymodal.corpora.{name}" for name in ("about", "corpus")}
    assert {*done.stdout.split()} == light | {"polymodal.corpora"}


def test_a_corpus_is_the_function_of_its_name_whatever_was_imported_before():
    program = """
import polymodal.corpora.furniture_views, polymodal.corpora.emoji
from polymodal.corpora.furniture import furniture
from polymodal import corpora
assert corpora.furniture is furniture and callable(corpora.emoji) and callable(corpora.stamps)
assert corpora.emoji.__module__ == "polymodal.corpora.emoji"
from polymodal.corpora import About, Corpus, MissingData, scenes
assert callable(scenes) and issubclass(MissingData, Exception)
assert {*corpora.built_in()} <= {*dir(corpora)} and all(getattr(corpora, name) for name in corpora.__all__)
try:
    corpora.emojo
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "module 'polymodal.corpora' has no attribute 'emojo'\n", done.stderr
