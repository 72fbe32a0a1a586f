"""Budgets as users write them: those in epochs need the data, which is opened after they are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polymodal.errors import UserError
from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


def check_budget(text: str) -> None:
    """Raise UserError for what is not a budget, before the data is opened."""
    Budget.parse(text, rows=1)


def budget_on(text: str, corpus: Corpus) -> Budget:
    """Return the budget; one in epochs becomes examples, by the number of training rows."""
    rows = len(corpus.rows("train")) if "epoch" in text.lower() else 0
    if "epoch" in text.lower() and not rows:
        raise UserError(
            f"The rows of {corpus.name} are streamed and not counted, so a budget cannot be in epochs; write for "
            "example 5000examples or 20m."
        )
    return Budget.parse(text, rows)
