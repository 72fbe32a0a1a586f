"""What is printed of a run before it trains for long: architecture, image size, parameters, speed, memory; and whether
the budget is too small for the size."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from polymodal.corpora.corpus import Corpus
from polymodal.encoders.size_names import Size
from polymodal.encoders.sizes import is_resizable
from polymodal.training.progress import Progress
from polymodal.training.progress_bar import memory_in_use, progress_bar
from polymodal.training.run import Run
from polymodal.training.sizes import SizeChoice, size_of
from polymodal.training.trainer import OnStep
from polymodal.types import Budget

TIMED_STEPS = 3  # after the first one, which is slower than the others
MAX_TIMED_SECONDS = 5.0  # after which fewer steps do
MIN_PASSES = 3  # over the data
MIN_STEPS: dict[Size, int] = {"tiny": 0, "small": 300, "base": 2000, "large": 20_000}
ENOUGH = 10  # times `MIN_STEPS`: so many steps are enough of less than MIN_PASSES


@dataclass
class SizeLine:
    """Callbacks of `training.train` that print one line about the run after its first steps, on standard error.

    on_step: what is called after every step besides.
    """

    choice: SizeChoice
    corpus: Corpus
    budget: Budget
    on_step: OnStep
    run: Run | None = None
    first: Progress | None = field(default=None, init=False)
    printed: bool = field(default=False, init=False)

    def built(self, run: Run) -> None:
        self.run = run

    def step(self, progress: Progress, reached: float, losses: Mapping[str, Any]) -> None:
        self.on_step(progress, reached, losses)
        if self.printed or self.run is None:
            return
        if self.first is None:
            self.first = dataclasses.replace(progress, history=[])
        steps, seconds = progress.step - self.first.step, progress.seconds - self.first.seconds
        if reached >= 1 or steps >= TIMED_STEPS or (steps and seconds > MAX_TIMED_SECONDS):
            self.printed = True
            examples = progress.examples - self.first.examples
            rate = examples / seconds if steps else progress.examples / max(progress.seconds, 1e-9)
            for line in self.lines(rate, memory_in_use()):
                print(line, file=sys.stderr)

    def lines(self, rate: float, memory: int) -> list[str]:
        """Return the line and, where the budget is too small, the sentence about it. rate: examples a second."""
        assert self.run is not None
        rows, recipe = self._rows, self.run.recipe
        a_pass = f", {duration(rows / rate)} a pass" if rows else ""
        used = f", {memory / 2**30:.1f} GiB of memory" if memory else ""
        reason = f" (chosen: {self.choice.reason})" if self.choice.reason else ""
        changed = "" if size_of(recipe) == self.choice.size else ", changed by hand"
        line = (
            f"Size {self.choice.size}{changed}{reason}: {architecture(recipe)}; "
            f"{millions(self.run.record['parameters'])} parameters; {rate:,.3g} examples/s{a_pass}{used}."
        )
        short = too_short(self.choice.size, self.budget, recipe.batch_size, rate, rows)
        return [line, short] if short else [line]

    @property
    def _rows(self) -> int:
        """Training examples; 0 where they are streamed."""
        return 0 if self.corpus.choices.get("stream") else len(self.corpus.rows("train"))


@contextmanager
def progress_and_size(
    title: str, choice: SizeChoice | None, corpus: Corpus, budget: Budget
) -> Iterator[dict[str, Any]]:
    """Show a progress bar and, where a size is given, its line; yields the callbacks of `training.train`."""
    with progress_bar(title) as on_step:
        if choice is None:
            yield {"on_step": on_step}
        else:
            line = SizeLine(choice, corpus, budget, on_step)
            yield {"on_build": line.built, "on_step": line.step}


def architecture(recipe: Any) -> str:
    """Return blocks, width and image size of every part of a recipe, such as 'image 6 x 192 at 96 px'."""
    parts = [(f"{name.replace('_', ' ')} ", getattr(recipe, name)) for name in _names_of_parts(recipe)]
    described = [name + _blocks(part) for name, part in [("", recipe), *parts] if hasattr(part, "depth")]
    if isinstance(side := getattr(recipe, "tile_size", None), int):
        described.append(f"tiles of {side} px")
    return ", ".join(described) or f"{getattr(recipe, 'embed_dim', 'own')} dimensions"


def _names_of_parts(recipe: Any) -> list[str]:
    return [one.name for one in dataclasses.fields(recipe) if is_resizable(getattr(recipe, one.name))]


def _blocks(part: Any) -> str:
    side = getattr(part, "image_size", None)
    blocks = f"{part.depth} x {part.width}" if part.depth else f"{part.width} wide"
    return blocks + (f" at {side} px" if isinstance(side, int) else "")


def too_short(size: Size, budget: Budget, batch_size: int, rate: float, rows: int) -> str:
    """Return a sentence about a budget that is too small for a size; '' where it is enough, or cannot be told.

    rate: examples a second. rows: training examples, 0 where they are not counted. Enough are `MIN_STEPS`, and three
    passes over the data or ten times as many steps.
    """
    counted = {"seconds": (budget.seconds or 0) * rate, "steps": (budget.steps or 0) * batch_size}
    examples = counted.get(budget.unit, budget.examples)
    if examples is None or size == "tiny":
        return ""
    steps, enough = examples / batch_size, MIN_STEPS[size] * batch_size
    if rows:
        enough = max(enough, min(MIN_PASSES * rows, ENOUGH * enough))
    if examples >= enough:
        return ""
    passes = f" and {examples / rows:,.2g} passes over the data" if rows else ""
    wanted = {
        "seconds": budget_text(enough / rate),
        "steps": f"{-(-enough // batch_size):.0f}steps",
        "examples": f"{-(-enough // rows):.0f}epochs" if rows else f"{enough:.0f}examples",
    }
    return (
        f"The budget of {budget} is about {steps:,.0f} steps{passes}, too little for size {size}: take a budget of "
        f"{wanted[budget.unit]} or more, or size tiny."
    )


def budget_text(seconds: float) -> str:
    """Return a budget of at least so many seconds as it is written: 90s, 25m, 3h."""
    if seconds <= 120:
        return f"{-(-seconds // 10) * 10:.0f}s"
    return f"{-(-seconds // 60):.0f}m" if seconds <= 7200 else f"{-(-seconds // 3600):.0f}h"


def duration(seconds: float) -> str:
    """Return a length of time in one unit: 0.4 s, 12 s, 25 min, 3.1 h."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.3g} h"


def millions(count: int) -> str:
    """Return a number of parameters: 0.19 million, 151 million, 2.7 billion."""
    return f"{count / 1e9:.2g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
