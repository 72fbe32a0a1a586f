"""Ends a computation that nobody waits for any more: its client has left, or its deadline has passed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from polymodal.serving.batching import DeadlineExceeded


@contextmanager
def ended_when(over: Callable[[], bool]) -> Iterator[None]:
    """Raise DeadlineExceeded in this thread, at the next call of any module, once `over` returns True.

    Every loop of generation calls modules at each token or step, also those of transformers and of a user's method.
    """
    thread = threading.get_ident()

    def check(module: Any, inputs: Any) -> None:
        if threading.get_ident() == thread and over():
            raise DeadlineExceeded

    hook = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
