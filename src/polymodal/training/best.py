"""The best weights of a run by its headline validation metric, and early stopping by the same metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from polymodal.errors import UserError
from polymodal.training.checkpoint import save_weights
from polymodal.training.checkpoint_reading import best_steps, whole_tensors
from polymodal.training.parallel import full_tensor
from polymodal.training.validation import Measured, Validate

if TYPE_CHECKING:
    from polymodal.training.loop import Trainer


class BestWeights:
    """Keeps the weights of the best validation, and stops after `patience` validations without a better one.

    Only validations of the last stage count, because earlier stages train other parameters. The counters are part of
    `Progress`, so that a resumed run decides as the uninterrupted one. patience: 0 never stops. keep: best or last.
    """

    def __init__(self, patience: int, keep: str):
        self.patience = patience
        self.keep = keep
        self.in_memory: dict[str, Tensor] = {}

    def stops(self, trainer: Trainer, metrics: Mapping[str, Measured]) -> bool:
        """Compare the current (EMA) weights with the best; return whether training stops. Called in all processes."""
        progress = trainer.progress
        if progress.stage + 1 < len(trainer.stages):
            return False
        name, value, better = _headline(metrics, progress.best_metric, progress.best_value)
        name, value, better = trainer.world.all_gather_object((name, value, better))[0]
        if better:
            progress.best_metric, progress.best_value, progress.best_step = name, value, progress.step
            progress.validations_since_best = 0
            if self.keep == "best":
                self._save(trainer)
        else:
            progress.validations_since_best += 1
        return bool(self.patience) and progress.validations_since_best >= self.patience

    def _save(self, trainer: Trainer) -> None:
        with trainer.averaged():
            weights = {name: full_tensor(tensor).detach() for name, tensor in trainer.model.state_dict().items()}
            if not trainer.world.first:
                return
            directory = trainer.run.directory
            if directory is None or trainer.writer is None:
                self.in_memory = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
                return
            save_weights(weights, _file(directory, trainer.progress.best_step))
        trainer.writer.wait()
        # Checkpoints, of which an older one is used where the newest is damaged, may refer to earlier best weights.
        steps = {trainer.progress.best_step, trainer.saved.best_step, *best_steps(directory)}
        needed = {_file(directory, step) for step in steps}
        for path in directory.glob("best-*.safetensors"):
            if path not in needed:
                path.unlink()

    def weights(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """Return the weights to end with; None where they are the last ones."""
        step, directory = trainer.progress.best_step, trainer.run.directory
        if self.keep != "best" or step in (0, trainer.progress.step):
            return None
        if directory is None:
            return trainer.world.all_gather_object(self.in_memory)[0]
        advice = f"train the run again, or copy the file again, then go on with: polymodal resume {directory}"
        return whole_tensors(_file(directory, step), advice)  # all processes share the folder

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """Return what the record says: which weights are kept, and where training stopped early."""
        progress = trainer.progress
        step = progress.best_step if self.keep == "best" and progress.best_step else progress.step
        kept = {"step": step, "metric": progress.best_metric, "best_value": progress.best_value}
        stopped = self.patience and progress.validations_since_best >= self.patience
        return {"kept": kept} | ({"stopped_early": progress.step} if stopped else {})


def best_weights(
    early_stop: int, keep: str | None, validate: Validate | None, validations: int, record: dict[str, Any]
) -> BestWeights | None:
    """Return what keeps the best weights, which the record then names; None without early stopping and keep=best.

    Raises UserError for other values, and without validation.
    """
    if validations < 0:
        raise UserError(f"validations is how often the run is validated, at least 0, not {validations}.")
    if early_stop < 0 or keep not in (None, "best", "last"):
        raise UserError("early_stop is a number of validations, at least 0, and keep is best or last.")
    keep = keep or ("best" if early_stop else "last")
    if not early_stop and keep == "last":
        return None
    if early_stop > validations or not validations:
        raise UserError(
            f"Of {validations} validations, there cannot be {max(early_stop, 1)} to decide by; raise --validations "
            "(validations=...), or lower --early-stop."
        )
    if validate is None:
        raise UserError("early_stop and keep='best' need validate, such as evaluation.validation(corpus).")
    record |= {"early_stop": early_stop, "keep": keep, "validations": validations}
    return BestWeights(early_stop, keep)


def remove_best(directory: Path) -> None:
    """Remove the best weights of a finished run, which its result holds."""
    for path in directory.glob("best-*.safetensors"):
        path.unlink()


def _file(directory: Path, step: int) -> Path:
    return directory / f"best-{step}.safetensors"


def _headline(metrics: Mapping[str, Measured], before: str, best: float | None) -> tuple[str, float, bool]:
    """Return name and value of the headline metric, and whether it is better than the best.

    before: the metric of the best, with which values of another one are not compared: a validation that lacks it is no
    better one. Raises UserError without metrics.
    """
    if not metrics:
        raise UserError(
            "Validation of this recipe on this data gives no metric; leave out --early-stop and --keep best."
        )
    if before and before not in metrics:
        return before, math.nan, False
    name = before or min(metrics, key=lambda one: math.inf if (place := metrics[one].headline) is None else place)
    value, sign = float(metrics[name].value), 1 if metrics[name].higher_is_better else -1
    return name, value, math.isfinite(value) and (best is None or sign * value > sign * best)
