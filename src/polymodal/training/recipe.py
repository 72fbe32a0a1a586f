"""What the recipes of trained methods have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from polymodal.constraints import NonNegativeInt, PositiveInt, validate_types
from polymodal.modalities import Text
from polymodal.training.grad_cache import Forward
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.parallel import World
from polymodal.types import Batch, Stage


class GradientTransform(Protocol):
    """From the gradients of each loss by groups of examples to the gradient of a step."""

    group_size: int
    """Examples of a group, which divide the batch of a process; 0 takes the micro-batches."""

    def backward(
        self,
        method: Any,
        batches: list[Batch],
        weights: Mapping[str, float],
        forward: Forward,
        fraction: float,
        world: World,
        name: str,
    ) -> dict[str, Tensor]:
        """Set the gradients of all trainable parameters; returns the losses, detached.

        fraction: of the stage that is done. name: of the losses in the method.
        """
        ...

    def report(self) -> dict[str, Any]:
        """What the run's history notes of the steps since the last report."""
        ...


def around(value: float, *factors: float) -> tuple[float, ...]:
    """Return a value and its multiples, these rounded to two digits, in ascending order."""
    return tuple(sorted({value, *(float(f"{value * factor:.2g}") for factor in factors)}))


@dataclass(frozen=True)
class TrainingRecipe:
    """Fields and defaults of the recipes of trained methods, see `types.Recipe`."""

    batch_size: PositiveInt = 96
    """Batch size in examples, over all processes."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its learning-rate schedule."""
    length_bucketing: NonNegativeInt = 0
    """Length bucketing: number of batches within which examples are sorted by length to reduce padding; 0: off."""
    freeze: tuple[str, ...] = ()
    """Frozen encoders, such as text (LiT, Zhai et al. 2022), or shell patterns of parameter names."""
    lora_rank: NonNegativeInt = 0
    """LoRA rank: train low-rank updates instead of the linear layers' own weights; 0: off."""
    lora_target_modules: tuple[str, ...] = ("*",)
    """Shell patterns of the names of linear layers that get LoRA."""

    length_modality: ClassVar[type] = Text
    """Modality by whose length `length_bucketing` sorts."""
    size_fields: ClassVar[dict[str, dict[str, Any]]] = {}
    """Plain fields at sizes `small` and `base`, beside the encoders (`training.sizes`)."""
    tuning_factors: ClassVar[dict[str, tuple[float, ...]]] = {}
    """Fields beside the learning rate that `tuning_grid` tries, and the factors of their own values, such as those of a
    temperature; weight decay where none is named."""

    def __post_init__(self) -> None:
        """Raises UserError for a field of a wrong kind, by its name."""
        validate_types(self)

    def stages(self) -> tuple[Stage, ...]:
        """Return the training stages in order; a recipe with more than one stage overrides it."""
        return (Stage("training"),)

    def missing_init(self) -> str:
        """Return why training cannot start without `--init`, as a sentence for the user; empty if it can."""
        return ""

    def tuning_grid(self) -> dict[str, tuple[float, ...]]:
        """Return the values that `polymodal tune` tries by default, by the names of hyper-parameters.

        Learning rates and the fields of `tuning_factors`, or else weight decay, around the recipe's own.
        """
        if self.tuning_factors:
            tried = {name: around(getattr(self, name), *factors) for name, factors in self.tuning_factors.items()}
            return self._learning_rates() | tried
        decay = self.optimizer.weight_decay
        return self._learning_rates() | {"optimizer.weight_decay": (0.01, 0.1) if not decay else around(decay, 0.1)}

    def _learning_rates(self) -> dict[str, tuple[float, ...]]:
        return {"optimizer.learning_rate": around(self.optimizer.learning_rate, 1 / 3, 3)}

    def gradient_transform(self) -> GradientTransform | None:
        """What makes one gradient of those of each loss; None adds them up. One is made for each run."""
        return None

    def cacheable_encoders(self) -> tuple[str, ...]:
        """Return the names of the encoders that see unaugmented inputs.

        If frozen, their features are cached (`training/feature_cache.py`).
        """
        return ()
