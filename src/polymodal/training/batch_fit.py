"""A batch that fits data, or what a stage selects of them, with fewer rows than the recipe's own batch."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

from polymodal.constraints import validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.training.stages import active_stages

MULTIPLE_OF = 4  # so that groups of examples and processes divide it
MAX_COUNTED = 1000  # batches of data: of more, a stage selects more than a batch


def fitting_batch(recipe: Any, corpus: Corpus) -> tuple[Any, str]:
    """Return the recipe with a batch of at most half of the training rows, or of those that a stage selects, and a
    sentence about it.

    The recipe as it is and no sentence where its batch fits, where the rows are streamed, and where it takes no smaller
    batch, of which training says more.
    """
    batch_size = getattr(recipe, "batch_size", 0)
    if corpus.choices.get("stream") or not dataclasses.is_dataclass(type(recipe)):
        return recipe, ""
    rows, of = sum(len(part.rows) for part in corpus.parts("train")), f"the training split of '{corpus.name}'"
    if batch_size <= rows <= MAX_COUNTED * batch_size:
        rows, of = min([(rows, of), *_selected(recipe, corpus)])
    if batch_size <= rows:
        return recipe, ""
    for size in range(rows // 2, 1, -1):
        if size % MULTIPLE_OF and size > MULTIPLE_OF:
            continue
        with suppress(UserError):
            validate_constraints(smaller := dataclasses.replace(recipe, batch_size=size))
            return smaller, (
                f"Batches have {size} examples in place of {batch_size}, as {of} has only {rows}; --batch-size "
                "(batch_size=...) sets another."
            )
    return recipe, ""


def is_default_batch(recipe: Any) -> bool:
    """Return whether the batch is the one that the recipe's class sets, and so not chosen by a user."""
    default = getattr(type(recipe), "batch_size", None)
    return default is not None and recipe.batch_size == default


def _selected(recipe: Any, corpus: Corpus) -> list[tuple[int, str]]:
    """Return how many training rows each stage selects, and of which stage they are.

    Only what selects them sees why it cannot, and training says it.
    """
    if not any(stage.rows for stage in recipe.stages()):
        return []
    with suppress(UserError):
        processor = fit_processor(recipe, corpus)
        return [
            (len(getattr(recipe, stage.rows)(corpus, processor)), f"the stage '{stage.name}' on '{corpus.name}'")
            for stage in active_stages(recipe)
            if stage.rows and stage.corpus is None
        ]
    return []
