"""A batch that fits data with fewer rows than the recipe's own batch."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

from polymodal.constraints import validate_constraints
from polymodal.corpora.corpus import Corpus
from polymodal.errors import UserError

MULTIPLE_OF = 4  # so that groups of examples and processes divide it


def fitting_batch(recipe: Any, corpus: Corpus) -> tuple[Any, str]:
    """Return the recipe with a batch of at most half of the training rows, and a sentence about it.

    The recipe as it is and no sentence where its batch fits, where the rows are streamed, and where it takes no smaller
    batch, of which training says more.
    """
    batch_size, rows = getattr(recipe, "batch_size", 0), _training_rows(corpus)
    if rows is None or batch_size <= rows or not dataclasses.is_dataclass(type(recipe)):
        return recipe, ""
    for size in range(rows // 2, 1, -1):
        if size % MULTIPLE_OF and size > MULTIPLE_OF:
            continue
        with suppress(UserError):
            validate_constraints(smaller := dataclasses.replace(recipe, batch_size=size))
            return smaller, (
                f"Batches have {size} examples in place of {batch_size}, as the training split of '{corpus.name}' has "
                f"only {rows}; --batch-size (batch_size=...) sets another."
            )
    return recipe, ""


def is_default_batch(recipe: Any) -> bool:
    """Return whether the batch is the one that the recipe's class sets, and so not chosen by a user."""
    default = getattr(type(recipe), "batch_size", None)
    return default is not None and recipe.batch_size == default


def _training_rows(corpus: Corpus) -> int | None:
    """Return the number of training rows; None where they are streamed."""
    if corpus.choices.get("stream"):
        return None
    return sum(len(part.rows) for part in corpus.parts("train"))
