"""Gradio page that accepts files that visitors uploaded, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from polymodal.serving.page.errors import toast

# Uploads are deleted at this age, checked at this interval, and when the server stops; seconds.
MAX_FILE_AGE, DELETE_EVERY = 600, 60


class GuardedBlocks(gr.Blocks):
    """Accepts files that visitors uploaded, and no others.

    Gradio rejects server paths instead of uploads, and marks no file as public, only in pages started by its own
    `launch`; this one is mounted. It also fetches URLs instead of uploads.
    """

    def __init__(self, title: str):
        super().__init__(title=title, analytics_enabled=False, delete_cache=(DELETE_EVERY, MAX_FILE_AGE))

    def mark_as_launched(self) -> None:
        self.has_launched = self.is_running = True

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Raise gradio's Error, which it does not log."""
        if not _uploads(inputs):
            raise toast("A file has to be uploaded.")
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception as error:  # of any kind: components expect what their own page sends
            raise toast("The page cannot read what was sent.", error) from error


def _uploads(values: Any) -> bool:
    """Return whether all submitted files are in the upload folder."""
    if isinstance(values, dict):
        path = values.get("path")
        return (not isinstance(path, str) or _uploaded(path)) and all(map(_uploads, values.values()))
    return not isinstance(values, list) or all(map(_uploads, values))


def _uploaded(path: str) -> bool:
    try:
        return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())
    except (OSError, ValueError):
        return False
