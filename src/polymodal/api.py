"""What `polymodal` offers to scripts and notebooks: train, evaluate, compare and tune by names, with a progress bar.

The functions of the same names in `training`, `evaluation` and `reproduce`, which these call, take objects and are
silent.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, TypeVar, overload

from torch import nn

from polymodal import recipes
from polymodal.constraints import validate_types
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.sources import open_data
from polymodal.data.loader import Reader
from polymodal.data.processor import Processor
from polymodal.encoders.size_names import Size, check_size
from polymodal.errors import UserError
from polymodal.evaluation import evaluate as score_all
from polymodal.evaluation.scores import Scores
from polymodal.modalities.text import Tokenizer
from polymodal.reproduce import compare as compare_arms
from polymodal.reproduce.compare import Start
from polymodal.reproduce.display import Display
from polymodal.reproduce.halving import successive_halving
from polymodal.reproduce.halving_display import HalvingDisplay
from polymodal.reproduce.halving_result import Tuning
from polymodal.reproduce.result import Arm, ComparisonResult
from polymodal.training import train as train_silently
from polymodal.training.batch_fit import fitting_batch, is_default_batch
from polymodal.training.run import Run, load_run
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.size_line import progress_and_size
from polymodal.training.sizes import SizeChoice, choose_size, is_published, sized
from polymodal.training.trainer import OnStep
from polymodal.training.validation import VALIDATIONS, Validate
from polymodal.types import Budget

MethodT_co = TypeVar("MethodT_co", bound=nn.Module, covariant=True)


class Builds(Protocol[MethodT_co]):
    """A recipe that builds a method of a known class, which is then the class of `run.model`."""

    def build(self, processor: Processor, /) -> MethodT_co: ...


@overload
def train(
    recipe: Builds[MethodT_co] | type[Builds[MethodT_co]],
    data: Any,
    budget: Budget | str,
    *,
    size: Size | None = ...,
    progress: bool = ...,
    seed: int = ...,
    out: Path | str | None = ...,
    name: str | None = ...,
    weights_like: nn.Module | None = ...,
    tokenizer: Tokenizer | None = ...,
    init: Path | str | None = ...,
    validate: Validate | None = ...,
    validations: int = ...,
    early_stop: int = ...,
    keep: str | None = ...,
    runtime: RuntimeConfig | None = ...,
    on_step: OnStep | None = ...,
    trust_code: bool = ...,
) -> Run[MethodT_co]: ...


@overload
def train(
    recipe: str | ModuleType,
    data: Any,
    budget: Budget | str,
    *,
    size: Size | None = ...,
    progress: bool = ...,
    seed: int = ...,
    out: Path | str | None = ...,
    name: str | None = ...,
    weights_like: nn.Module | None = ...,
    tokenizer: Tokenizer | None = ...,
    init: Path | str | None = ...,
    validate: Validate | None = ...,
    validations: int = ...,
    early_stop: int = ...,
    keep: str | None = ...,
    runtime: RuntimeConfig | None = ...,
    on_step: OnStep | None = ...,
    trust_code: bool = ...,
) -> Run: ...


def train(
    recipe: Any,
    data: Any,
    budget: Budget | str,
    *,
    size: Size | None = None,
    progress: bool = True,
    seed: int = 0,
    out: Path | str | None = None,
    name: str | None = None,
    weights_like: nn.Module | None = None,
    tokenizer: Tokenizer | None = None,
    init: Path | str | None = None,
    validate: Validate | None = None,
    validations: int = VALIDATIONS,
    early_stop: int = 0,
    keep: str | None = None,
    runtime: RuntimeConfig | None = None,
    on_step: OnStep | None = None,
    trust_code: bool = False,
) -> Run:
    """Train a recipe on data and return the run: `pm.train("clip", pm.corpora.emoji(), "20m")`.

    recipe: its name (as on the command line), module, class, or an instance with hyper-parameters.
    data: a corpus, a path or several, or a table in memory; see `corpora.open_data`.
    budget: such as "300steps", "3epochs", "20m" or `Budget(steps=300)`.
    size: tiny, small, base or large, in whose values those of an instance that are no defaults are kept. Without it,
    an instance is trained as it is, and a size for anything else is chosen by data and machine (`training.sizes`).
    progress: whether a bar on standard error, or below the cell of a notebook, shows how far training is; without a
    terminal, a line per tenth. The other arguments are those of `training.train`, which says what is raised.
    """
    size = None if size is None else check_size(size)
    given = as_recipe(recipe)
    check_budget(budget)
    corpus = open_data(data)
    amount = budget_on(budget, corpus)
    places = {"init": init, "out": out, "trust_code": trust_code}
    choice = _size_choice(recipe, given, size, corpus, amount, runtime, **places)
    given = _with_fitting_batch(recipe, given if choice is None else sized(given, choice.size), corpus)
    title = f"{name or name_of(given)} on {corpus.name}"
    silent = nullcontext({"on_step": on_step})
    with silent if on_step or not progress else progress_and_size(title, choice, corpus, amount) as callbacks:
        return train_silently(
            given,
            corpus,
            amount,
            seed=seed,
            out=out,
            name=name or name_of(given),
            weights_like=weights_like,
            tokenizer=tokenizer,
            init=init,
            validate=validate,
            validations=validations,
            early_stop=early_stop,
            keep=keep,
            runtime=runtime,
            trust_code=trust_code,
            **callbacks,
        )


def _with_fitting_batch(recipe: Any, given: Any, corpus: Corpus) -> Any:
    """Return the recipe with a batch that fits the data, with a warning, unless an instance of the user sets it.

    recipe: as the user passes it. given: the recipe that it stands for, at its size.
    """
    if hasattr(type(recipe), "__dataclass_fields__") and not is_default_batch(recipe):
        return given
    fitting, changed = fitting_batch(given, corpus)
    if changed:
        warnings.warn(changed, stacklevel=3)
    return fitting


def _size_choice(
    recipe: Any,
    given: Any,
    size: Size | None,
    corpus: Corpus,
    budget: Budget,
    runtime: RuntimeConfig | None = None,
    **places: Any,
) -> SizeChoice | None:
    """Return the size that is named or, for a published recipe without values of the user, chosen; else None.

    places: init, out and trust_code of `choose_size`.
    """
    if size is not None:
        return SizeChoice(size, "")
    if given is recipe or not is_published(type(given)):
        return None
    return choose_size(corpus, runtime.device if runtime else None, budget=budget, **places)


def evaluate(run: Run | Path | str, data: Any, reader: Reader | None = None, templates: Sequence[str] = ()) -> Scores:
    """Compute all scores that a run can have on the test splits of data; `to_frame()` gives them as a DataFrame.

    run: or the folder of one. The other arguments are those of `evaluation.evaluate`.
    """
    if isinstance(run, str | Path):
        run = load_run(run)
    if not isinstance(run, Run):
        raise UserError(f"evaluate takes a run or the folder of one, not {type(run).__name__}.")
    return Scores(score_all(run, open_data(data), reader, templates))


def compare(
    arms: Sequence[Arm | Any] | Mapping[str, Any],
    data: Any,
    budget: Budget | str,
    seeds: int | Sequence[int] = 3,
    out: Path | str | None = None,
    display: Display | None = None,
    start: Start | None = None,
    jobs: int = 1,
    trust_code: bool = False,
    steps: Mapping[str, int] | None = None,
    budget_fractions: Mapping[str, float] = MappingProxyType({}),
    size: Size | None = None,
    validations: int = VALIDATIONS,
) -> ComparisonResult:
    """Train and score recipes fairly: `pm.compare(["clip", "siglip"], pm.corpora.emoji(), "25s")`.

    arms: recipes as `train` takes them, in a list, where `Arm`s name them, or by name. size: of all arms, as in
    `train`; it is chosen where no arm is an instance or the user's own. The other arguments are those of
    `reproduce.compare`.
    """
    if isinstance(arms, Mapping):
        arms = [Arm(label, as_recipe(recipe)) for label, recipe in arms.items()]
    if isinstance(arms, str) or not isinstance(arms, Sequence):
        raise UserError('compare takes a list of recipes, such as ["clip", "siglip"].')
    size = None if size is None else check_size(size)
    named = [arm if isinstance(arm, Arm) else Arm(name_of(made := as_recipe(arm)), made) for arm in arms]
    check_budget(budget)
    corpus = open_data(data)
    given = [arm.recipe if isinstance(arm, Arm) else arm for arm in arms]
    amount = budget_on(budget, corpus)
    choices = [_size_choice(one, arm.recipe, size, corpus, amount) for one, arm in zip(given, named, strict=True)]
    if (choice := choices[0] if choices and None not in choices else None) is not None:
        named = [replace(arm, recipe=sized(arm.recipe, choice.size)) for arm in named]
    each = zip(given, named, strict=True)
    named = [replace(arm, recipe=_with_fitting_batch(one, arm.recipe, corpus)) for one, arm in each]
    return compare_arms(
        named, corpus, amount, seeds, out, display, start, jobs, trust_code, steps, budget_fractions, validations
    )


def tune(
    recipe: Any,
    data: Any,
    budget: Budget | str,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    progress: bool = True,
    eta: int = 2,
    seed: int = 0,
    out: Path | str | None = None,
    name: str | None = None,
    init: Path | str | None = None,
    runtime: RuntimeConfig | None = None,
    trust_code: bool = False,
    size: Size | None = None,
) -> Tuning:
    """Find the best values of hyper-parameters by successive halving on the validation split.

    `pm.tune("clip", pm.corpora.emoji(), "30m", grid={"optimizer.learning_rate": (3e-4, 1e-3, 3e-3)})`. The result shows
    itself as a table; `.best` has the values, `.run` the best run, `to_frame()` every result.
    budget: of all candidates together, in steps, examples, epochs or time. grid: by default the recipe's own
    `tuning_grid()`. eta: at the end of each rung, one in `eta` candidates goes on. out: folder, by default
    tuning/RECIPE-CORPUS-seed-N; the same call goes on with an unfinished one. size: chosen as in `train`. The other
    arguments are those of `train`.
    Raises UserError for a grid or a budget that cannot be used, and for data without a validation split.
    """
    size = None if size is None else check_size(size)
    given = as_recipe(recipe)
    check_budget(budget)
    if grid is not None and not isinstance(grid, Mapping):
        raise UserError('A grid has lists of values by name, such as {"optimizer.learning_rate": (3e-4, 1e-3)}.')
    corpus = open_data(data)
    amount = budget_on(budget, corpus)
    choice = _size_choice(recipe, given, size, corpus, amount, runtime, init=init, trust_code=trust_code)
    given = given if choice is None else sized(given, choice.size)
    given = _with_fitting_batch(recipe, given, corpus)
    name = name or name_of(given)
    return successive_halving(
        given,
        corpus,
        amount,
        grid,
        out=Path(out or f"tuning/{name}-{corpus.name}-seed-{seed}"),
        eta=eta,
        seed=seed,
        init=init,
        name=name,
        runtime=runtime,
        display=HalvingDisplay() if progress else None,
        trust_code=trust_code,
    )


def as_recipe(recipe: Any) -> Any:
    """Return the recipe that a name, module, class or instance stands for, with fields of the right kinds.

    Raises UserError for anything else, and for a recipe that trains nothing.
    """
    if isinstance(recipe, ModuleType):
        if not isinstance(getattr(recipe, "Recipe", None), type):
            raise UserError(f"The module {recipe.__name__} has no class Recipe.")
        recipe = recipe.Recipe
    elif isinstance(recipe, str):
        recipe = recipes.find(recipe)
    if inspect.isclass(recipe) and hasattr(recipe, "__dataclass_fields__"):
        recipe = recipe()
    if not hasattr(type(recipe), "__dataclass_fields__"):
        raise UserError(
            f'A recipe is a name such as "clip", its module or class, or an instance such as '
            f"pm.recipes.clip.Recipe(), not {type(recipe).__name__}."
        )
    if not hasattr(recipe, "build"):
        raise UserError(f"The recipe '{name_of(recipe)}' trains nothing: it builds no method.")
    validate_types(recipe)
    return recipe


def check_budget(budget: Any) -> None:
    """Raise UserError for what is not a budget, before the data is opened."""
    if isinstance(budget, str):
        Budget.parse(budget, rows=1)
    elif not isinstance(budget, Budget):
        raise UserError(f'A budget is a text such as "300steps" or "20m", or pm.Budget(steps=300), not {budget!r}.')


def budget_on(budget: Budget | str, corpus: Corpus) -> Budget:
    """Return the budget, parsed where it is a text; one in epochs becomes examples, by the number of training rows.

    Raises UserError for epochs of rows that are not counted.
    """
    if isinstance(budget, Budget):
        return budget
    rows = len(corpus.rows("train")) if "epoch" in budget.lower() else 0
    if "epoch" in budget.lower() and not rows:
        raise UserError(
            f"The rows of {corpus.name} are streamed and not counted, so a budget cannot be in epochs; write for "
            "example 5000examples or 20m."
        )
    return Budget.parse(budget, rows)


def name_of(recipe: Any) -> str:
    """Return the name of a recipe's module, by which it is listed; of a class of a notebook, its own name."""
    kind = type(recipe)
    return kind.__qualname__ if kind.__module__ == "__main__" else kind.__module__.rpartition(".")[2]
