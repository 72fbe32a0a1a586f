"""The types that every folder shares. Importing this module is cheap: torch is imported only for type checkers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from polymodal.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polymodal.corpora.corpus import Corpus
    from polymodal.data.processor import Processor
    from polymodal.rng import ExampleRNG

Example = dict[str, Any]  # column name -> decoded value of a modality
# Name -> tensor, or a batch class of a modality (such as modalities.text.Tokens). The batches of a recipe's stages are
# TypedDicts, declared beside the method that reads them, with key, type and shape of every value.
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Paper:
    """The publication that a recipe implements. Written as a literal, so that listings need not import torch.

    code: official code that the recipe was checked against, as OWNER/REPOSITORY@COMMIT; empty if there is none.
    parameters: published counts of the method of `Recipe.paper()`, by shell patterns of parameter names, of which those
    with ! take names away; none where no count is published.
    """

    slug: str
    title: str
    year: int
    arxiv: str
    modalities: tuple[str, ...]
    code: str = ""
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """How long a run may train; exactly one of them is set.

    tokens: of sequences, without padding. flops: floating-point operations, counted on the first batch.
    seconds: wall-clock seconds of training; validation and checkpoints do not count. Comparisons turn them into steps.
    """

    steps: int | None = None
    examples: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None

    SECONDS: ClassVar[Mapping[str, int]] = {"s": 1, "seconds": 1, "m": 60, "min": 60, "h": 3600}

    def __post_init__(self) -> None:
        if len(self._given) != 1 or not self._given[self.unit] > 0:
            raise UserError(
                "A budget is one positive number of steps, examples, tokens, flops or seconds, such as 200steps or 60s."
            )

    @property
    def _given(self) -> dict[str, float]:
        return {name: amount for name, amount in vars(self).items() if amount is not None}

    @property
    def unit(self) -> str:
        """steps, examples, seconds, tokens or flops."""
        return next(iter(self._given), "")

    @classmethod
    def parse(cls, text: str, rows: int = 0) -> Budget:
        """Read '200steps', '5000examples', '1e6tokens', '1e15flops', '60s', '20m', '1.5h', or '3epochs' of `rows` rows,
        which are examples; else raises UserError."""
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+]?[0-9]+)?)\s*([a-z]+)\s*", text.lower())
        word = match[2] if match else ""
        unit = "seconds" if word in cls.SECONDS else "steps" if word == "step" else word
        if match is not None and unit in ("epoch", "epochs") and rows:
            return cls(examples=max(round(float(match[1]) * rows), 1))
        if match is None or unit not in cls.__dataclass_fields__:
            raise UserError(f"'{text}' is not a budget; write for example 200steps, 3epochs, 60s, 20m or 2h.")
        amount, whole = float(match[1]) * cls.SECONDS.get(word, 1), unit not in ("seconds", "flops")
        if whole and amount != int(amount):
            raise UserError(f"'{text}' is not a budget; {unit} are whole numbers.")
        given: dict[str, Any] = {unit: int(amount) if whole else amount}
        return cls(**given)

    def fraction(self, **used: float) -> float:
        """Return the used fraction of the budget, from 0 to 1. used: how much of each unit."""
        return min(used[self.unit] / self._given[self.unit], 1.0)

    def scaled(self, fraction: float) -> Budget:
        """Return a fraction of the budget, rounded to whole steps, examples or tokens, and at least one of them."""
        amount = self._given[self.unit]
        scaled: dict[str, Any] = {
            self.unit: max(round(amount * fraction), 1) if isinstance(amount, int) else amount * fraction
        }
        return Budget(**scaled)

    def __str__(self) -> str:
        return f"{self._given[self.unit]:.12g}{'s' if self.unit == 'seconds' else self.unit}"


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own data, losses and trainable parameters.

    fraction: of the budget, relative to the other stages. trainable: shell patterns of parameter names; all others are
    frozen: no gradient, no optimizer state. loss_weights: factors of named losses, 1 where not named; 0 leaves a loss
    out. lr_scale: factor of the recipe's learning rate. lr_scales: further factors by shell patterns of names, of
    which the first that fits counts. corpus: opens the stage's data, by default the run's. rows: the method of the
    recipe that selects the stage's training rows, from a corpus and the processor; by default all. batch: the method of
    the recipe that makes the stage's batches. losses: the method of the nn.Module that computes the named losses of
    such a batch. on_start: the method of the nn.Module that changes it before the stage's first step, or a function of
    the module, such as `training.initialization.from_run("runs/clip")`. order: the method of the recipe that returns,
    from the corpus and what `mine` found, the order of training rows for a seed (`corpora.corpus.Part`); by default
    rows are shuffled. mine: the method of the recipe that returns, from the nn.Module and a `data.loader.Reader`, an
    array of integers when the stage begins, such as hard negatives; it is kept in the run's folder.
    """

    name: str
    fraction: float = 1.0
    trainable: tuple[str, ...] = ("*",)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    lr_scale: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    corpus: Callable[[], Corpus] | None = None
    rows: str | None = None
    batch: str = "training_batch"
    losses: str = "losses"
    on_start: str | Callable[[nn.Module], object] | None = None
    order: str = ""
    mine: str = ""


class Recipe(Protocol):
    """A frozen dataclass of hyper-parameters that builds a method (see CONTRIBUTING for how to write one)."""

    def columns(self) -> Mapping[str, Any]:
        """What is read of an example, by name (`data.processor.Declared`), from which the processor is made."""
        ...

    def build(self, processor: Processor) -> nn.Module:
        """The method: an nn.Module with `losses` and the capabilities it has."""
        ...

    def stages(self) -> tuple[Stage, ...]:
        """What is trained, one after the other; `TrainingRecipe` has a single stage."""
        ...

    def training_batch(self, examples: list[Example], processor: Processor, example_rng: ExampleRNG) -> Batch:
        """Examples to a batch, with this recipe's augmentation; every random choice comes from `example_rng`."""
        ...


@runtime_checkable
class Method(Protocol):
    """What the trainer needs: named losses, already weighted; the trainer adds them up.

    A `Stage` may name another method than `losses`. Losses that are means over units other than examples name the
    method that counts these in a batch (`objectives.reduction.mean_over`).
    """

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """batch: of the stage, typed by the method."""
        ...
