"""The methods, one file each, in one folder a family. The list of recipes is the folder itself.

`polymodal.recipes.sparc` is the module of that recipe, wherever its family; a file or module outside the package is
named like a file (`./my_method.py`, `./my_method.py:Mine`) or a module (`package.module:Recipe`).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal import source
from polymodal.constraints import describe_constraint
from polymodal.errors import UserError, unknown

if TYPE_CHECKING:
    from polymodal.claim import Claim


@dataclass(frozen=True)
class Entry:
    """What a listing says of a recipe, read from its file without importing it."""

    name: str
    slug: str
    family: str
    idea: str
    title: str
    year: int
    arxiv: str
    modalities: tuple[str, ...]
    has_claim: bool
    corpus: str  # what its claim is tested on, or a corpus that suits it
    method: str  # the class that its Recipe builds
    checked: str | None  # official code that it was compared with, owner/name@commit
    lines: int  # of its file

    @property
    def module(self) -> str:
        return f"{__name__}.{self.family}.{self.name}"

    @property
    def file(self) -> Path:
        return Path(__file__).parent / self.family / f"{self.name}.py"


def entries() -> dict[str, Entry]:
    """All recipes of the package by name."""
    return {name: _read(file, _assigned(_tree(_claim_file(name)))) for name, file in _files().items()}


def _files() -> dict[str, Path]:
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*/[!_]*.py"))}


def _claim_file(name: str) -> Path:
    return Path(__file__).parents[1] / "claims" / f"{name}.py"


def _tree(file: Path) -> ast.Module:
    """The statements of a file; of one that does not exist, none."""
    return ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")


def _module_of(file: Path) -> str:
    return f"{__name__}.{file.parent.name}.{file.stem}"


def find(spec: str) -> type[Any]:
    """The recipe class that a user's words name. Raises UserError, with the nearest name, when there is none."""
    place, _, name = spec.partition(":")
    if place.endswith(".py"):
        from polymodal.training.recipe_file import import_file  # imports torch, which listings do without

        module = import_file(Path(place).expanduser())
    elif place in (known := _files()):
        module = importlib.import_module(_module_of(known[place]))
    elif name:
        module = _import_module(place)
    elif Path(f"{place}.py").is_file():
        raise UserError(f"There is no recipe '{place}', but a file of this name here: write ./{place}.py.")
    else:
        raise unknown("recipe", place, known)
    found = getattr(module, name or "Recipe", None)
    if not isinstance(found, type):
        raise UserError(f"{place} has no class '{name or 'Recipe'}'; name the recipe's class, as in {place}:Mine.")
    return found


def stand_in(spec: str) -> type[Any]:
    """As `find`, from the recipe's source where that is readable: quick, and all that flags and their help need.

    `source.real` turns its instances into those of the recipe itself.
    """
    place, _, name = spec.partition(":")
    file, known = Path(place).expanduser(), _files()
    if place in known:
        found = source.find(_module_of(known[place]), name or "Recipe")
        return found if isinstance(found, type) else find(spec)
    if file.suffix == ".py" and file.is_file():
        with suppress(Exception):  # of the user's file, which `find` imports and says what is wrong with
            return _own_source(file)[name or "Recipe"]
    return find(spec)


def _own_source(file: Path) -> source.Source:
    def load() -> Any:
        from polymodal.training.recipe_file import import_file

        return import_file(file)

    return source.Source(file.stem, file, load)


def find_method(spec: str) -> type[Any]:
    """As `stand_in`, of a method that is trained. Raises UserError for any other."""
    found = stand_in(spec)
    if not hasattr(found, "build"):
        raise UserError(f"The recipe '{spec}' trains nothing; use it with: polymodal {command_of(found, spec)}")
    return found


def command_of(kind: type[Any], spec: str) -> str:
    """The command that a recipe which trains nothing is used with. kind: its class; spec: how it is named."""
    uses = {
        "attack": f"attack {spec} RUN",
        "score": f"score {spec} CAPTIONS.jsonl",
        "steps": f"curate {spec} PAGES",
        "pair_documents": f"curate {spec} DOCUMENTS --encoder RUN",
    }
    return next(use for does, use in uses.items() if hasattr(kind, does))


def has_capability(entry: Entry, *capabilities: str) -> bool:
    """Whether what the recipe builds, or the recipe itself where it builds nothing, has one of these methods."""
    recipe = find(entry.name)
    built = typing.get_type_hints(recipe.build)["return"] if hasattr(recipe, "build") else recipe
    kinds = typing.get_args(built) or (built,)
    return any(callable(getattr(kind, name, None)) for kind in kinds for name in capabilities)


def _import_module(place: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # a command, unlike `python -m`, does not look in the working folder
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise UserError(f"The module '{place}' cannot be imported: {error}") from error


def _read(file: Path, claims: Mapping[str, ast.expr]) -> Entry:
    tree = _tree(file)
    paper = _assigned(tree)["paper"]
    assert isinstance(paper, ast.Call)
    said = {word.arg: ast.literal_eval(word.value) for word in paper.keywords}
    idea = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
    return Entry(
        name=file.stem,
        slug=said["slug"],
        family=file.parent.name,
        idea=idea.partition(": ")[2] or idea,
        title=said["title"],
        year=said["year"],
        arxiv=said["arxiv"],
        modalities=said["modalities"],
        has_claim=FIRST_CLAIM in claims,
        corpus=_claim_corpus(claims.get(FIRST_CLAIM)),
        method=_built_class(tree),
        checked=said.get("code") or None,
        lines=file.read_text(encoding="utf-8").count("\n"),
    )


def _assigned(tree: ast.Module) -> dict[str, ast.expr]:
    """The module-level values by name."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _claim_corpus(claim: ast.expr | None) -> str:
    words = claim.keywords if isinstance(claim, ast.Call) else []
    return next((ast.literal_eval(word.value) for word in words if word.arg == "corpus"), "emoji")


def _built_class(tree: ast.Module) -> str:
    """The return annotation of the recipe's `build`; an attack or a metric is its recipe itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "build" and isinstance(node.returns, ast.Name):
            return node.returns.id
    return "Recipe"


FIRST_CLAIM = "claim"  # its name in the file of claims


def claims(spec: str) -> dict[str, Claim]:
    """The claims about a recipe by name: those of `polymodal/claims/NAME.py`, or of a user's file those that it has."""
    module = _claim_module(spec)
    return _claims_in(vars(importlib.import_module(module) if module else sys.modules[find(spec).__module__]))


def _claim_module(spec: str) -> str | None:
    name = spec.partition(":")[0]
    return f"polymodal.claims.{name}" if name in _files() and _claim_file(name).is_file() else None


def _claims_in(names: Mapping[str, Any]) -> dict[str, Claim]:
    from polymodal.claim import Claim

    return {name: value for name, value in names.items() if isinstance(value, Claim)}


def describe(spec: str) -> dict[str, Any]:
    """What `polymodal show` says: the paper, the whole docstring, every hyper-parameter, the claims."""
    kind = stand_in(spec)
    try:
        return _described(spec, kind)
    except Exception:  # a value of the file that is not readable
        return _described(spec, find(spec))


def _described(spec: str, kind: type[Any]) -> dict[str, Any]:
    module = sys.modules[kind.__module__]
    paper = getattr(module, "paper", None)
    own = _claim_module(spec)
    values = source.values(source.read(own).module if own else module)
    sentences = {name: claim.sentence for name, claim in _claims_in(values).items()}
    return {
        "name": spec,
        "title": paper.title if paper else kind.__name__,
        "year": paper.year if paper else None,
        "arxiv": paper.arxiv if paper else None,
        "modalities": list(paper.modalities) if paper else [],
        "code": paper.code if paper else "",
        "about": inspect.cleandoc(module.__doc__ or "").strip(),
        "hyper_parameters": list(_hyper_parameters(kind())),
        "claim": sentences.pop(FIRST_CLAIM, None),
        "further_claims": sentences,
    }


def _hyper_parameters(recipe: Any, prefix: str = "") -> Iterator[dict[str, Any]]:
    """flag, type, default, and the text below the field, which says its meaning and source."""
    hints, texts = typing.get_type_hints(type(recipe)), field_texts(type(recipe))
    with_ranges = typing.get_type_hints(type(recipe), include_extras=True)
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            yield from _hyper_parameters(value, f"{prefix}{field.name}.")
            continue
        hint, bounds = hints[field.name], describe_constraint(with_ranges[field.name])
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        named = " | ".join(choices) if choices else getattr(hint, "__name__", str(hint))
        yield {
            "flag": "--" + f"{prefix}{field.name}".replace("_", "-"),
            "type": f"{named}, {bounds}" if bounds else named,
            "default": f"{value:.4g}" if isinstance(value, float) else str(value),
            "meaning": texts.get(field.name, ""),
        }


def field_texts(kind: type) -> dict[str, str]:
    """The string that stands below each field of a dataclass and of those it derives from."""
    texts: dict[str, str] = {}
    for one in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def __getattr__(name: str) -> Any:
    known = {} if name.startswith("_") else _files()
    if name not in known:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(_module_of(known[name]))


def __dir__() -> list[str]:
    return list(_files())
