"""Errors of the page: one sentence in the tab, which the next good answer removes, and one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from typing import Any

import gradio as gr

from polymodal.serving.http_errors import CLIENT_ERRORS, error_response

log = logging.getLogger("polymodal.server")


def alert() -> gr.HTML:
    """Return the place of a tab's errors."""
    return gr.HTML("", elem_classes="problem", js_on_load=None)


def sentence(error: Exception) -> str:
    """Return the HTML of an error that a visitor reads. Unexpected ones are logged with their traceback."""
    if isinstance(error, CLIENT_ERRORS):
        message = error_response(error).message
        _log(message, error)
    else:
        message = "Something went wrong; the server's log says what."
        log.error("page failed", exc_info=error)
    return f'<p role="alert">{escape(message)}</p>'


def with_errors(
    answer: Callable[..., Awaitable[Sequence[Any]]], blank: Sequence[Any]
) -> Callable[..., Awaitable[list[Any]]]:
    """Return a function whose last output is the sentence of an error, or empty. blank: its other outputs then."""

    async def answered(*inputs: Any) -> list[Any]:
        try:
            return [*await answer(*inputs), ""]
        except Exception as error:
            return [*blank, sentence(error)]

    return answered


def toast(message: str, error: Exception | None = None) -> gr.Error:
    """Return the error of what the page itself never sends."""
    _log(message, error)
    return gr.Error(message, print_exception=False)


def _log(message: str, error: Exception | None) -> None:
    reason = f" ({type(error).__name__})" if error is not None else ""
    log.warning("page: %s%s", ascii(message[:500])[1:-1], reason)
