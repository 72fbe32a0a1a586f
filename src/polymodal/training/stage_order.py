"""The order of training rows of a stage, and what is mined for it when the stage begins."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from polymodal.corpora.corpus import Corpus
from polymodal.data.loader import Reader
from polymodal.errors import UserError, write_errors
from polymodal.training.parallel import World
from polymodal.training.run import Run
from polymodal.types import Stage


def in_order(corpus: Corpus, stage: Stage, number: int, run: Run, fresh: bool, world: World) -> Corpus:
    """Return the corpus with the order of training rows that the stage names; unchanged if it names none.

    fresh: mine now, with the method as it begins the stage. Else what was mined then is read from the run's folder, as
    the method has gone on. A collective. Raises UserError where that file is missing.
    """
    if not stage.order:
        return corpus
    mined = _mined(corpus, stage, number, run, fresh, world) if stage.mine else None
    return replace(corpus, train_order=partial(getattr(run.recipe, stage.order), corpus, mined))


def _mined(corpus: Corpus, stage: Stage, number: int, run: Run, fresh: bool, world: World) -> np.ndarray:
    file = None if run.directory is None else Path(run.directory, f"mined-{number}.npy")
    if not fresh:
        if file is None or not file.is_file():
            raise UserError(
                f"The stage '{stage.name}' cannot go on without {file}, which it wrote when it began; restore the "
                "file, or choose another --out."
            )
        return np.load(file, allow_pickle=False)
    rows = getattr(run.recipe, stage.mine)(run.model, Reader(corpus, run.processor))
    mined = world.all_gather_object(rows)[0]  # processes may round differently
    if file is not None and world.first:
        with write_errors(file.parent):
            np.save(file, mined)
    return mined
