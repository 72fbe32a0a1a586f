"""Flags of recipes: those of the method first, then those that all trained recipes share."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from polymodal import source
from polymodal.cli._flags import Arguments, PresetOptions, parse_together
from polymodal.encoders.size_names import Size, check_size
from polymodal.errors import UserError

OPTIMIZER = "optimizer"  # the field of a recipe with the hyper-parameters of its optimizer

# Flags of other programs, and what to write in their place.
USUAL_FLAGS = {
    "--epochs": "a budget may be in epochs: --budget {}epochs",
    "--num-epochs": "a budget may be in epochs: --budget {}epochs",
    "--steps": "a budget may be in steps: --budget {}steps",
    "--max-steps": "a budget may be in steps: --budget {}steps",
    "--lr": "write --learning-rate {}",
    "--bf16": "write --precision bfloat16",
    "--fp16": "half precision is --precision bfloat16, which needs no scaling of losses",
    "--output-dir": "the folder of a run is --out {}",
}
PRECISIONS = {
    "bf16": "write --precision bfloat16",
    "fp16": "half precision is --precision bfloat16, which needs no scaling of losses",
    "float16": "half precision is --precision bfloat16, which needs no scaling of losses",
    "fp32": "write --precision float32",
}


def parse_with_recipe(
    kinds: dict[str, Any], kind: Any, arguments: Arguments, usage: str, command: Callable[[Arguments], None]
) -> Any:
    """Parse as `parse_together`, with a recipe of this kind; --size and --paper select a preset.

    Help has the flags of the command and its data first, then those of the recipe, then those of the runtime.
    kind: may be a stand-in, from which `source.real` makes the recipe.
    """
    if "--paper" in arguments and not hasattr(kind, "paper"):
        raise UserError("This recipe has no preset of a paper; leave --paper out.")
    _hint_at_flags(kind, arguments)
    size = named_size(arguments)
    try:
        recipe = kind.paper() if "--paper" in arguments else _at_size(kind, size) if size else kind
        # In the order of the help text: the command, the recipe, its pretrained encoders, and how it is executed.
        late = {name: one for name, one in kinds.items() if name in ("towers", "runtime")}
        early = {name: one for name, one in kinds.items() if name not in late} | {"preset": PresetOptions}
        check_names(recipe, [*early.values(), *late.values()], usage)
        parsed = parse_together(early | {"recipe": _flags_of(recipe)} | late, arguments, usage, command)
        return dataclasses.replace(parsed, recipe=_recipe_of(parsed.recipe, kind))
    except source.NotReadable:  # a method of the stand-in needs what is not imported yet
        return parse_with_recipe(kinds, source.imported(kind), arguments, usage, command)


def check_names(recipe: Any, kinds: Iterable[Any], usage: str) -> None:
    """Raise UserError for a field of a recipe that has the name of another flag of the command.

    kinds: dataclasses with the other flags. usage: of the command.
    """
    taken = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    if dataclasses.is_dataclass(optimizer := getattr(recipe, OPTIMIZER, None)):
        taken |= {field.name for field in dataclasses.fields(optimizer)}  # without the prefix
    names = {field.name for field in dataclasses.fields(recipe) if not _is_group(getattr(recipe, field.name, None))}
    if both := sorted(taken & names):
        command = " ".join(usage.split()[:2])
        raise UserError(
            f"The recipe's field '{both[0]}' has the name of another flag of `polymodal {command}`; rename the field."
        )


def _is_group(default: Any) -> bool:
    """Whether a field's flags have its name as a prefix alone, as --image.width."""
    return dataclasses.is_dataclass(default)


def named_size(arguments: Arguments) -> Size | None:
    """Return what --size names, the last one where it is given several times. Raises UserError for no size, and beside
    --paper."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--size=") else [word])]
    sizes = [check_size(name) for flag, name in itertools.pairwise(words) if flag == "--size"]
    if sizes and "--paper" in arguments:
        raise UserError("Give --size or --paper, not both; --paper is --size large.")
    return sizes[-1] if sizes else None


def _at_size(kind: Any, size: Size) -> Any:
    """Return the preset of a size; that of small and base needs what is not imported yet."""
    if size == "tiny":
        return kind
    from polymodal.training.sizes import sized

    return sized(source.imported(kind), size)


def _hint_at_flags(kind: Any, arguments: Arguments) -> None:
    """Raise UserError for flags that other programs have for what is named otherwise here."""
    fields = {field.name for field in dataclasses.fields(kind)}
    for flag, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, _, value = flag.partition("=")
        value = value or following
        if name in USUAL_FLAGS and name.lstrip("-").replace("-", "_") not in fields:
            raise UserError(f"There is no flag {name}; {USUAL_FLAGS[name].format(value or 3)}")
        if name == "--precision" and value in PRECISIONS:
            raise UserError(f"--precision {value} is not a choice; {PRECISIONS[value]}")


def _flags_of(recipe: Any) -> type[Any]:
    """Return a dataclass with a recipe's fields in the order of the help text.

    recipe: class, or instance with the default values. The fields of the dataclass that all recipes derive from come
    last. Those of the optimizer, such as --optimizer.learning-rate, may be written without the prefix.
    """
    kind = recipe if isinstance(recipe, type) else type(recipe)
    root = next(base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base))
    shared = {field.name for field in dataclasses.fields(root)} if root is not kind else set()
    fields = sorted(_fields_of(recipe), key=lambda field: field[0] in shared)
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def _fields_of(values: Any, with_alias: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, annotated type and default of each field. values: class, or instance with the default values."""
    import tyro

    from polymodal.recipes import field_texts

    kind = values if isinstance(values, type) else type(values)
    hints, texts = typing.get_type_hints(kind, include_extras=True), field_texts(kind)
    for field in dataclasses.fields(kind):
        name, default = field.name, getattr(values, field.name, dataclasses.MISSING)
        hint: Any = hints[name]
        if name == OPTIMIZER and dataclasses.is_dataclass(default):
            hint = dataclasses.make_dataclass(hint.__name__, _fields_of(default, with_alias=True), frozen=True)
            default = hint()
        alias = (f"--{name.replace('_', '-')}",) if with_alias else None
        flag = Annotated[hint, tyro.conf.arg(help=texts.get(name), aliases=alias)]
        yield name, flag, dataclasses.field(default=default, kw_only=True)


def _recipe_of(flags: Any, kind: type[Any]) -> Any:
    """Return the recipe with the values of its flags."""
    values = _values_of(flags)
    if dataclasses.is_dataclass(values.get(OPTIMIZER)):
        values[OPTIMIZER] = typing.get_type_hints(kind)[OPTIMIZER](**_values_of(values[OPTIMIZER]))
    return kind(**values)


def _values_of(flags: Any) -> dict[str, Any]:
    return {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
