"""Signals that end a command: SIGTERM, and SIGHUP of a terminal that is closed, end it as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Why a command ends, by the name of the signal; Windows has no SIGHUP.
REASONS = {"SIGHUP": "SIGHUP (the terminal was closed)", "SIGTERM": "SIGTERM", "SIGINT": "Ctrl-C"}


class Ended(KeyboardInterrupt):
    """A signal ended the command: what is half-written, locks and child processes do not stay."""


@contextmanager
def end_signals() -> Iterator[None]:
    """Raise Ended in the main thread on SIGTERM and SIGHUP, where their effect is the default one.

    A second SIGTERM ends the process at once. A signal that is ignored, such as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    process = os.getpid()

    def end(number: int, _: Any) -> None:
        if os.getpid() != process:  # a forked process, which the first one ends
            return
        name = signal.Signals(number).name
        signal.signal(number, signal.SIG_IGN if name == "SIGHUP" else signal.SIG_DFL)
        if name == "SIGHUP":
            leave_terminal()
        raise Ended(f"stopped by {REASONS[name]}.")

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def leave_terminal() -> None:
    """Send the output to nowhere, where it went to the terminal that is closed: writing to it would fail."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
