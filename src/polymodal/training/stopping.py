"""Signals that ask a training to save and stop: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polymodal.end_signals import REASONS, leave_terminal

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class StopEvent(threading.Event):
    """Set by a signal. reason: which one, in words; '' before it."""

    reason = ""


@contextmanager
def stop_signals() -> Iterator[StopEvent]:
    """Yield an event that Ctrl-C, SIGTERM and SIGHUP set; a second signal stops at once. Only the main thread listens.

    A signal that is ignored, such as SIGHUP under nohup, stays ignored.
    """
    event = StopEvent()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = [number for name in NAMES if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}

    def ask(number: int, _: Any) -> None:
        event.reason = REASONS[signal.Signals(number).name]
        event.set()
        signal.signal(number, before[signal.Signals(number)])
        if signal.Signals(number).name == "SIGHUP":
            leave_terminal()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
