"""Budgets as users write them: those in epochs need the data, which is opened after they are checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polymodal.types import Budget

if TYPE_CHECKING:
    from polymodal.corpora.corpus import Corpus


def check_budget(text: str) -> None:
    """Raise UserError for what is not a budget, before the data is opened."""
    Budget.parse(text, rows=1)


def budget_on(text: str, corpus: Corpus) -> Budget:
    """Return the budget; one in epochs becomes examples, by the number of training rows."""
    from polymodal import api  # loads torch

    return api.budget_on(text, corpus)
