"""Preference pairs: a chosen and a rejected answer to a question."""

from __future__ import annotations

from polymodal.data.columns.column import PassThroughColumn
from polymodal.modalities import Preferences


class PreferencesColumn(PassThroughColumn):
    """Pairs of answers to questions about an example, the better one first."""

    reads = (Preferences,)
