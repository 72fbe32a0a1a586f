"""The error for a run whose method lacks what a command needs; it lists the recipes that have it."""

from __future__ import annotations

from polymodal import recipes
from polymodal.errors import UserError
from polymodal.training.run import Run


def lacks(run: Run, what: str, *capabilities: str) -> UserError:
    """Return the error. what: it cannot do, such as 'answer'. capabilities: methods of which one is needed."""
    able = [entry.name for entry in recipes.entries().values() if recipes.has_capability(entry, *capabilities)]
    return UserError(f"The run '{run.name}' cannot {what}; recipes whose methods can: {', '.join(able)}.")
