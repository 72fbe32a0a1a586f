"""The size of a recipe on the command line: the one that is named, else the one that suits data and machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus
    from polymodal.training.sizes import SizeChoice
    from polymodal.types import Budget


def size_choice(parsed: Any, kind: type[Any], corpus: Corpus, out: str, budget: Budget) -> SizeChoice:
    """Return the size of a training. parsed: its flags. kind: of the recipe, which may be a stand-in. out: folder
    of the run."""
    from polymodal.training.sizes import SizeChoice, choose_size, is_published

    preset, options = parsed.preset, parsed.options
    if preset.paper or preset.size:
        return SizeChoice("large" if preset.paper else preset.size, "")
    if not is_published(kind):
        return SizeChoice("tiny", "your own recipe")
    return choose_size(corpus, parsed.runtime.device, options.init, out, options.trust_code, budget)


def size_flags(parsed: Any, choice: SizeChoice) -> list[str]:
    """Return the flags that a chosen size adds to those that were parsed."""
    named = parsed.preset.size or parsed.preset.paper or choice.size == "tiny"
    return [] if named else ["--size", choice.size]


def fitting_batch_unless_set(recipe: Any, corpus: Corpus, flags: list[str]) -> tuple[Any, str]:
    """Return the recipe with a batch that fits the data, unless the flags set it; and a sentence where it is another
    one."""
    if {flag.partition("=")[0].replace("_", "-") for flag in flags} & {"--batch-size"}:
        return recipe, ""
    from polymodal.training.batch_fit import fitting_batch

    return fitting_batch(recipe, corpus)


def with_fitting_batch(recipe: Any, corpus: Corpus, flags: list[str], name: str = "") -> Any:
    """Return the recipe with a batch that fits the data, unless the flags set it; print that it is another one.

    name: of the recipe, where there are several.
    """
    from polymodal.training.parallel import is_first

    recipe, changed = fitting_batch_unless_set(recipe, corpus, flags)
    if changed and is_first():
        print(f"{name}: {changed}" if name else changed, file=sys.stderr)
    return recipe


def say_size(choice: SizeChoice, of: str = "") -> None:
    """Print which size was chosen, and why. of: the recipes that have it."""
    print(f"Size {choice.size}{of} (chosen: {choice.reason}).", file=sys.stderr)


def size_of_arms(arms: list[Any], corpus: Corpus, budget: Budget) -> str | None:
    """Return the size that suits data and machine, for all arms of a comparison that name none.

    None where it is the defaults, and where an arm is the user's own recipe, whose values are not replaced. arms: their
    flags.
    """
    from polymodal.training.sizes import choose_size, is_published

    unnamed = [arm for arm in arms if not (arm.preset.size or arm.preset.paper)]
    if not unnamed or not all(is_published(type(arm.recipe)) for arm in arms):
        return None
    choice = choose_size(corpus, budget=budget)
    if choice.size == "tiny":
        return None
    say_size(choice, " of all recipes" if len(unnamed) == len(arms) else " of the recipes that name none")
    return choice.size
