"""Every hyper-parameter of a recipe has an effect: the code of the recipe, or of what trains it, reads the field. And
no other flag of the command has its name."""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

import polymodal as pm
from polymodal import recipes
from polymodal.cli._flags import PresetOptions, TowerOptions
from polymodal.cli._recipe_flags import check_names, parse_with_recipe
from polymodal.cli.training import TrainOptions, train
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip, uniqa
from polymodal.training.recipe import TrainingRecipe
from polymodal.training.runtime import RuntimeConfig

PACKAGE = Path(pm.__file__).parent
RECIPES = {"recipe", "config", "configuration"}  # what code outside the recipe calls it


@functools.cache
def read_of_recipes() -> frozenset[str]:
    """Names that training and the models read of a recipe: `recipe.NAME`, `self.recipe.NAME`."""
    files = [file for folder in ("training", "models") for file in (PACKAGE / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    return frozenset(
        node.attr for node in nodes if isinstance(node, ast.Attribute) and called(node.value).lower() in RECIPES
    )


def called(node: ast.expr) -> str:
    """The last name of an expression: `recipe` of `self.run.recipe`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def functions(kind: type) -> Iterator[Any]:
    """Functions that an object of the class may call: not those that a subclass overrides without calling them."""
    open_names = {name for base in kind.__mro__ for name in vars(base)}
    for base in kind.__mro__:
        if not base.__module__.startswith(("polymodal", __name__)):
            continue
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and name in open_names and is_written(function):
                yield function
                if "super" not in inspect.unwrap(function).__code__.co_names:
                    open_names.discard(name)


def is_written(function: FunctionType) -> bool:
    """Whether a file has the function, unlike those that dataclasses make."""
    return Path(inspect.unwrap(function).__code__.co_filename).is_file()


def attributes(code: CodeType) -> set[str]:
    """Names of attributes that a function and those within it read."""
    read = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_ATTR", "LOAD_METHOD")}
    return read.union(*(attributes(one) for one in code.co_consts if isinstance(one, CodeType)))


def unread(kind: type) -> set[str]:
    """Fields of a recipe that nothing reads. The other functions and classes of its file count as its code."""
    own = sys.modules[kind.__module__]
    kinds = [one for one in vars(own).values() if inspect.isclass(one) and one.__module__ == own.__name__]
    others = [one for one in vars(own).values() if isinstance(one, FunctionType) and one.__module__ == own.__name__]
    used = [*others, *(function for one in {kind, *kinds} for function in functions(one))]
    read = read_of_recipes().union(*(attributes(inspect.unwrap(one).__code__) for one in used))
    return {field.name for field in dataclasses.fields(kind)} - read


@pytest.mark.parametrize("name", recipes.entries())
def test_every_field_of_a_recipe_is_read(name: str) -> None:
    assert unread(recipes.find(name)) == set()


@pytest.mark.parametrize("name", [name for name in recipes.entries() if issubclass(recipes.find(name), TrainingRecipe)])
def test_no_field_of_a_recipe_has_the_name_of_another_flag(name: str) -> None:
    check_names(recipes.find(name), (TrainOptions, TowerOptions, PresetOptions, RuntimeConfig), f"train {name}")


def test_a_field_with_the_name_of_another_flag_is_one_sentence() -> None:
    language = dataclasses.make_dataclass("OwnLanguage", [("language", str, "en")], bases=(clip.Recipe,), frozen=True)
    with pytest.raises(UserError, match="'language' has the name of another flag of `polymodal train own"):
        parse_with_recipe({"options": TrainOptions}, language, [], "train own.py:Own", train)
    rate = dataclasses.make_dataclass("OwnRate", [("learning_rate", float, 1.0)], bases=(clip.Recipe,), frozen=True)
    with pytest.raises(UserError, match="'learning_rate' has"):  # that of the optimizer, without its prefix
        check_names(rate, (), "train own.py:Own")
    tower = dataclasses.make_dataclass("OwnTower", [("audio", Any, clip.Recipe().image)], frozen=True)
    check_names(tower, (TowerOptions,), "compare own.py:Own")  # its flags are --audio.width ...


@dataclasses.dataclass(frozen=True)
class OwnBatches(clip.Recipe):
    """A recipe that makes its batches without the augmentation that it inherits."""

    def cacheable_encoders(self) -> tuple[str, ...]:
        return ()

    def training_batch(self, examples: Any, processor: Any, example_rng: Any) -> Any:
        return {"text": self.sample_captions(examples, processor.text, example_rng)}


def test_a_field_that_an_override_no_longer_reads_is_found() -> None:
    assert unread(OwnBatches) == {"augmentation"}


def test_uniqa_has_crops_and_no_augmentation_beside_them() -> None:
    assert not hasattr(uniqa.Recipe(), "augmentation")
    assert uniqa.Recipe().load_size
