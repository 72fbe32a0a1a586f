"""The size of a recipe on the command line: the one that is named, else the one that suits data and machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus
    from polymodal.training.sizes import SizeChoice


def size_choice(parsed: Any, kind: type[Any], corpus: Corpus, out: str) -> SizeChoice:
    """Return the size of a training. parsed: its flags. kind: of the recipe, which may be a stand-in. out: folder
    of the run."""
    from polymodal.training.sizes import SizeChoice, choose_size, is_published

    preset, options = parsed.preset, parsed.options
    if preset.paper or preset.size:
        return SizeChoice("large" if preset.paper else preset.size, "")
    if not is_published(kind):
        return SizeChoice("tiny", "your own recipe")
    return choose_size(corpus, parsed.runtime.device, options.init, out, options.trust_code)


def size_flags(parsed: Any, choice: SizeChoice) -> list[str]:
    """Return the flags that a chosen size adds to those that were parsed."""
    named = parsed.preset.size or parsed.preset.paper or choice.size == "tiny"
    return [] if named else ["--size", choice.size]


def size_of_arms(kinds: list[type[Any]], corpus: Corpus) -> str | None:
    """Return the size that suits data and machine, for all arms of a comparison that name none.

    None where it is the defaults, and where an arm is the user's own recipe, whose values are not replaced.
    """
    from polymodal.training.sizes import choose_size, is_published

    if not all(map(is_published, kinds)):
        return None
    choice = choose_size(corpus)
    if choice.size == "tiny":
        return None
    print(f"Size {choice.size} of all arms (chosen: {choice.reason}).", file=sys.stderr)
    return choice.size
