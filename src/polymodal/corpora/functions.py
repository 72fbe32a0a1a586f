"""Python's standard library: functions and methods with their docstring, by module.

Rows depend on the Python that prepares them (its version stands in every key). Splits are by module, so that a test
function has no sibling in training; functions with equal code never straddle a split. Tests, and docstrings of less
than three words, are left out. The docstring is cut out of the code.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from polymodal.corpora._prepared import Preparation, Row, open_prepared
from polymodal.corpora._splits import Groups, split_groups
from polymodal.corpora.corpus import About, Corpus
from polymodal.modalities import Category, Modality, Text
from polymodal.modalities.text import stored_texts

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
MAX_CHARACTERS = 20_000  # characters of code

about = About(
    name="functions",
    description=f"functions of Python {VERSION}'s standard library with their docstrings",
    license="PSF-2.0",
    source="this Python's own standard library",
    modalities=("text", "category"),
)


def functions() -> Corpus:
    """Open the corpus, parsing the library once (some seconds)."""
    columns: dict[str, Modality] = {"code": Text(), "docstring": Text(), "package": Category()}
    return open_prepared(about, columns, _rows, further={"module": pa.string(), "line": pa.int32()}, label="package")


def _rows(prepare: Preparation) -> Iterator[Row]:
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.rglob("*.py")) if not LEFT_OUT & set(path.relative_to(library).parts)]
    documented = []
    for path in prepare.track(files, "Reading the standard library"):
        name = ".".join(path.relative_to(library).with_suffix("").parts)
        module = name.removesuffix(".__init__")
        documented += [(module, *function) for function in documented_functions(path.read_text(errors="replace"))]
    same = Groups(len(documented))
    same.join_equal((row, ("module", module)) for row, (module, *_) in enumerate(documented))
    same.join_equal((row, ("code", code)) for row, (_, _, _, code, _) in enumerate(documented))
    groups = [documented[same.root(row)][0] for row in range(len(documented))]
    split_of = split_groups([""] * len(documented), groups)
    for (module, name, line, code, docstring), group in zip(documented, groups, strict=True):
        yield {
            "key": f"python{VERSION}/{module}.{name}:{line}",
            "split": split_of[group],
            "code": stored_texts(code, language="python"),
            "docstring": stored_texts(docstring),
            "package": module.partition(".")[0],
            "module": module,
            "line": line,
        }


def documented_functions(source: str) -> Iterator[tuple[str, int, str, str]]:
    """Return qualified name, line, code without docstring, and docstring of every function that has one."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for name, node in _functions(tree, ""):
        docstring = ast.get_docstring(node)
        if docstring is None or len(docstring.split()) < 3 or len(node.body) < 2:
            continue
        first, end = node.body[0], node.end_lineno or node.lineno
        code = "\n".join([*lines[node.lineno - 1 : first.lineno - 1], *lines[(first.end_lineno or 0) : end]])
        if len(code) <= MAX_CHARACTERS:
            yield name, node.lineno, code, docstring


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, prefix)
