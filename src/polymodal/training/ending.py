"""How a run ends: finished, interrupted by the user, or stopped by an error in the data; what is saved then."""

from __future__ import annotations

import gc

from torch import Tensor, nn

from polymodal.errors import UserError
from polymodal.layers.lora import add_lora, merge_lora
from polymodal.training.best import BestWeights, remove_best
from polymodal.training.checkpoint import remove_checkpoints
from polymodal.training.loop import Trainer
from polymodal.training.parallel import full_tensor
from polymodal.training.run import Run
from polymodal.training.training_rows import save_training_rows
from polymodal.training.validation import Validate


class Interrupted(UserError):
    """Training was stopped by Ctrl-C, SIGTERM or SIGHUP; progress is saved."""


class Paused(Interrupted):
    """Training reached the step until which it was to train; its folder goes on with the same schedule."""


def interrupt(trainer: Trainer, reason: str = "") -> Interrupted:
    """Save a checkpoint and return the error that says how to resume.

    reason: what stopped it, which the record keeps, because the terminal may be gone.
    """
    run, step = trainer.run, trainer.progress.step
    if trainer.writer is None:
        return Interrupted(f"Stopped at step {step}; nothing was saved, because no folder was given.")
    trainer.save()
    trainer.writer.wait()
    trainer.tracker.close()
    if trainer.world.first:
        run.record["state"] = "interrupted"
        run.record["stopped_by"] = reason
        run.save_record()
    by = f" by {reason}" if reason and reason != "Ctrl-C" else ""
    return Interrupted(f"Stopped{by} and saved at step {step}; go on with: polymodal resume {run.directory}")


def pause(trainer: Trainer, validate: Validate | None) -> Paused:
    """Validate, save a checkpoint and return what says so. Without a folder, nothing is saved."""
    if validate is not None:
        trainer.validate(validate)
    return Paused(str(interrupt(trainer)))


def rescue(trainer: Trainer, error: UserError) -> UserError:
    """Save a checkpoint after a data error and return the error that says how to resume."""
    if trainer.writer is None or trainer.world.size > 1:  # the other processes are still waiting for this step
        return error
    trainer.save()
    trainer.writer.wait()
    return UserError(f"{error} Mend that, then go on with: polymodal resume {trainer.run.directory}")


def finish(trainer: Trainer, best: BestWeights | None = None) -> Run:
    """Write the final weights, which are the best ones where `best` keeps them, and remove the checkpoints.

    Raises UserError for weights that are not finite.
    """
    run = trainer.run
    trainer.check_finite()
    trainer.release_features()
    run.model = _final_model(trainer, best.weights(trainer) if best is not None else None)
    run.trained_corpus = trainer.setup.corpus
    skipped = trainer.write_skipped()
    _record_costs(trainer, len(skipped))
    run.record |= best.report(trainer) if best is not None else {}
    trainer.tracker.close()
    # DistributedDataParallel must be gone before the processes part: it would end their threads while it holds the
    # interpreter's lock, which these may be waiting for.
    trainer.active.losses_of = None
    gc.collect()
    if trainer.writer is not None:
        trainer.writer.wait()
        if trainer.world.first:
            assert run.directory is not None
            save_training_rows(trainer.setup.corpus, run.directory)
            run.save_result()
            run.save_record()
            remove_checkpoints(trainer.writer.directory)
            remove_best(trainer.writer.directory)
        trainer.world.all_reduce_max(0)  # no process goes on before the result is there
    return run


def _final_model(trainer: Trainer, best: dict[str, Tensor] | None) -> nn.Module:
    """Return the model with the best or last weights: averaged, gathered from all processes, LoRA merged."""
    if trainer.ema is not None:
        trainer.ema.apply()
    state = best or {name: full_tensor(tensor) for name, tensor in trainer.model.state_dict().items()}
    if trainer.sharded:
        recipe = trainer.recipe
        trainer.model = recipe.build(trainer.run.processor)
        if recipe.lora_rank:
            add_lora(trainer.model, recipe.lora_rank, recipe.lora_target_modules)
    if trainer.sharded or best:
        trainer.model.load_state_dict(state)
    merge_lora(trainer.model)
    return trainer.model.requires_grad_(True).eval()


def _record_costs(trainer: Trainer, skipped: int) -> None:
    progress = trainer.progress
    trainer.run.record |= {
        "state": "finished",
        "steps": progress.step,
        "examples": progress.examples,
        "seconds": round(progress.seconds, 3),
        "tokens": progress.tokens,
        "flops_an_example": progress.flops / progress.examples,
        "packing_efficiency": round(progress.packing_efficiency, 4),
        "skipped_steps": progress.skipped_steps,
        "skipped": skipped,
        "processes": trainer.world.size,
    }
