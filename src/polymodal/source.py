"""Values of a module from its source, without importing it: help and listings then need not wait for torch.

A module-level name is made by running the one statement that binds it, after those that bind the names it uses. Imports
are followed to other files of the package in the same way, and to modules that are cheap: the standard library, and
what is imported already. Annotations, decorators and defaults of functions that need more are left out. A dataclass
that is made like this is a stand-in: it has the fields, types, defaults and help texts of the real one, and `real`
turns its instances into those of the real one. A name that needs anything else is not readable. What a later statement
changes in a value, such as `NAMES.append(...)`, is not seen.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import hashlib
import importlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = __name__.partition(".")[0]
CHEAP = {*sys.stdlib_module_names, "annotated_types"}  # imported where a source needs them


class NotReadable(AttributeError):
    """A name that needs its module to be imported."""


class Source(dict[str, Any]):
    """The namespace of a module, in which each name is made when it is asked for.

    name: of the module. load: imports it, for `real`.
    """

    def __init__(self, name: str, file: Path, load: Callable[[], Any]):
        self._tree = ast.parse(file.read_text(encoding="utf-8"), file)
        self._load = load
        self._statements: dict[str, ast.stmt | None] = {}  # None: not readable, such as what is bound twice
        for statement in _statements(self._tree):
            for bound in _bound(statement):
                self._statements[bound] = None if bound in self._statements else statement
        self.module = _Module(f"{name} (source)", ast.get_docstring(self._tree, clean=False), self, file)
        sys.modules[self.module.__name__] = self.module  # where `inspect.getsource` looks for the file of a class
        super().__init__(__name__=self.module.__name__)

    def __missing__(self, name: str) -> Any:
        if name not in self._statements:
            raise (KeyError if hasattr(builtins, name) else NotReadable)(name)
        statement = self._statements[name]
        if isinstance(statement, ast.ImportFrom):
            alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
            if statement.level or statement.module is None:
                raise NotReadable(f"{name} is imported relatively")
            self[name] = _member(statement.module, alias.name)
        elif isinstance(statement, ast.Import):
            alias = next(alias for alias in statement.names if (alias.asname or alias.name.partition(".")[0]) == name)
            imported = _module(alias.name)
            self[name] = imported if alias.asname else sys.modules.get(name, imported)
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.ClassDef | ast.FunctionDef):
            self._statements[name] = None  # while it runs: what needs itself is not readable
            self._run(statement)
        if name not in self:
            raise NotReadable(f"{name} is bound by more than a plain statement")
        return self[name]

    def _run(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._simplify(node)
        for name in _names_used(statement):
            if name in self._statements:
                self[name]
        code = compile(ast.Module([statement], []), str(self.module.__file__), "exec", dont_inherit=True)
        exec(code, self)

    def _simplify(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Leave out annotations, and the decorators and defaults that are not readable."""
        arguments = function.args
        function.returns = None
        for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if one is not None:
                one.annotation = None
        function.decorator_list = [one for one in function.decorator_list if self._is_readable(one)]
        arguments.defaults = [one if self._is_readable(one) else ast.Constant(None) for one in arguments.defaults]
        arguments.kw_defaults = [
            one if one is None or self._is_readable(one) else ast.Constant(None) for one in arguments.kw_defaults
        ]
        ast.fix_missing_locations(function)

    def _is_readable(self, expression: ast.expr) -> bool:
        try:
            for name in _names_used(expression):
                if name in self._statements:
                    self[name]
        except NotReadable:
            return False
        return True

    def calls(self) -> dict[str, Any]:
        """The module-level values that are written as a call. Raises NotReadable where one is not."""
        assignments = (statement for statement in self._tree.body if isinstance(statement, ast.Assign))
        calls = (statement for statement in assignments if isinstance(statement.value, ast.Call))
        return {name: self[name] for statement in calls for name in _bound(statement)}

    @functools.cached_property
    def loaded(self) -> Any:
        """The module itself, imported."""
        return self._load()


class _Module(ModuleType):
    """A source as a module, for code that takes names from modules."""

    def __init__(self, name: str, text: str | None, source: Source, file: Path):
        super().__init__(name, text)
        self.__file__ = str(file)
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.source[name]
        except KeyError as error:
            raise AttributeError(name) from error


@functools.cache
def read(module: str) -> Source:
    """The source of a module of the package."""
    file = _file(module)
    if file is None:
        raise NotReadable(f"{module} is no module of the package")
    return Source(module, file, lambda: importlib.import_module(module))


def find(module: str, name: str) -> Any:
    """A name of a module of the package: the real one where that is imported or not readable, else a stand-in."""
    try:
        return _member(module, name)
    except Exception:  # whatever it was, it is no error of the user's, and the import will do
        return getattr(importlib.import_module(module), name)


def values(module: ModuleType) -> Mapping[str, Any]:
    """The values of an imported module; of one that is read, those that are written as a call."""
    return module.source.calls() if isinstance(module, _Module) else vars(module)


def imported(kind: type[Any]) -> type[Any]:
    """The real class of a stand-in; any other class is returned as it is."""
    module = sys.modules.get(kind.__module__)
    return getattr(module.source.loaded, kind.__name__) if isinstance(module, _Module) else kind


def real(value: Any) -> Any:
    """The same value with real dataclasses in place of stand-ins, whose modules are imported."""
    if type(value) is tuple:
        each = tuple(map(real, value))
        return value if all(map(operator.is_, each, value)) else each
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    given = {name: real(one) for name, one in held.items()}
    if (kind := imported(type(value))) is not type(value):
        return kind(**given)
    changed = {name: one for name, one in given.items() if one is not held[name]}
    return dataclasses.replace(value, **changed) if changed else value


def code_version(modules: Iterable[str]) -> str:
    """A hash of modules and of all modules of the package that they import, also inside functions.

    A module outside the package counts by its file, with what it imports from the package. Line endings do not count.
    """
    texts: dict[str, bytes] = {}
    waiting = sorted({*modules})
    while waiting:
        module = waiting.pop()
        file = _file(module) or getattr(sys.modules.get(module), "__file__", None)
        if module in texts or file is None:
            continue
        texts[module] = Path(file).read_bytes().replace(b"\r\n", b"\n")
        waiting += sorted(_imported_modules(ast.parse(texts[module])))
    whole = hashlib.sha256()
    for module, text in sorted(texts.items()):
        # A module outside the package may have another name each time.
        whole.update((module if module.partition(".")[0] == PACKAGE else "").encode() + b"\0" + text + b"\0")
    return whole.hexdigest()[:16]


def _imported_modules(tree: ast.AST) -> Iterator[str]:
    """The modules of the package that are imported anywhere, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _file(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _file(name) else node.module for name in names if _file(node.module))
        yield from _imported_modules(node)


def _member(module: str, name: str) -> Any:
    imported = sys.modules.get(module)
    if imported is not None and name in vars(imported):
        return vars(imported)[name]
    if module.partition(".")[0] != PACKAGE:
        return getattr(_module(module), name)
    if _file(f"{module}.{name}"):
        return _module(f"{module}.{name}")
    return read(module)[name]


def _module(name: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    if name.partition(".")[0] in CHEAP:
        return importlib.import_module(name)
    return read(name).module


def _file(module: str) -> Path | None:
    package, *parts = module.split(".")
    place = Path(__file__).parent.joinpath(*parts)
    files = (place.with_suffix(".py"), place / "__init__.py") if parts else (place / "__init__.py",)
    return next((file for file in files if file.is_file()), None) if package == PACKAGE else None


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those of a module, and the imports for type checkers, by which lazy packages say where their names are."""
    for statement in tree.body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from statement.body
        else:
            yield statement


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement binds."""
    if isinstance(statement, ast.Import):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
    else:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", statement)]
        stored = (node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        yield from {node.id for node in stored if isinstance(node.ctx, ast.Store)}


def _names_used(node: ast.AST) -> Iterator[str]:
    """The names that are looked up when a statement runs, which the bodies of functions do not yet."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and child in node.body):
            yield from _names_used(child)
