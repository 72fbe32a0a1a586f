"""Trials in parallel: each in a process of its own, with an equal part of the cores, or on the next of several GPUs."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from polymodal.errors import UserError
from polymodal.reproduce.display import ProgressReporter
from polymodal.training import Interrupted
from polymodal.training.recipe_file import import_file
from polymodal.training.stopping import stop_signals

LISTEN = 0.2  # seconds between checks for Ctrl-C


@dataclass(frozen=True)
class Job:
    """One trial. work: what its process calls, with a watcher; it and all that it holds can be pickled."""

    label: str
    seed: int
    work: Callable[[ProgressReporter], Any]

    @property
    def named(self) -> str:
        return f"{self.label}, seed {self.seed},"


class _PipeReporter(ProgressReporter):
    """Passes on what a process's trials are at."""

    def __init__(self, telling: Connection):
        self.telling = telling

    def show(self, label: str, seed: int, **changes: str) -> None:
        self.telling.send(("show", (label, seed, changes)))

    def say_finished(self, label: str, seed: int, metrics: str) -> None:
        self.telling.send(("finished", (label, seed, metrics)))


def run_in_parallel(
    jobs: Sequence[Job], at_once: int, watcher: ProgressReporter, own_files: Sequence[Path] = ()
) -> None:
    """Run all jobs, `at_once` at a time, in their order; each leaves its results on disk.

    own_files: recipe files outside any package, which every process imports first.
    Raises UserError as soon as a job does, or where a process ends without a word; then, and after Ctrl-C or SIGTERM,
    which raise Interrupted, the others are asked to save and are waited for.
    """
    threads = max(1, torch.get_num_threads() // at_once)
    waiting, free = deque(jobs), deque(range(at_once))
    running: dict[Connection, tuple[Job, int, BaseProcess]] = {}
    with stop_signals() as stop:
        try:
            while (waiting or running) and not stop.is_set():
                while waiting and free:
                    job, place = waiting.popleft(), free.popleft()
                    receiver, process = _begin(job, place, threads, own_files)
                    running[receiver] = job, place, process
                ready = wait(list(running), LISTEN)
                for receiver in [one for one in running if one in ready]:
                    job, place, process = running[receiver]
                    if _listen(receiver, job, process, watcher):
                        del running[receiver]
                        free.append(place)
        finally:
            for _, _, process in running.values():
                process.terminate()  # training answers by saving
            for _, _, process in running.values():
                process.join()
    if stop.is_set():
        raise Interrupted("Stopped and saved.")


def _begin(job: Job, place: int, threads: int, own_files: Sequence[Path]) -> tuple[Connection, BaseProcess]:
    # Not forked: a process that has computed, or knows a GPU, cannot be forked safely.
    context = multiprocessing.get_context("spawn")
    receiver, telling = context.Pipe(duplex=False)
    try:
        pickled = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(f"{job.named} cannot run in a process of its own ({error}); take --jobs 1.") from error
    process = context.Process(target=_work, args=(pickled, place, threads, own_files, telling), daemon=False)
    with _without_ctrl_c():
        process.start()
    telling.close()
    return receiver, process


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that begin here do not hear Ctrl-C, which a terminal sends to all: they are ended by this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(receiver: Connection, job: Job, process: BaseProcess, watcher: ProgressReporter) -> bool:
    """Take in what a process says next; True when that is its end."""
    try:
        kind, content = receiver.recv()
    except EOFError as end:
        process.join()
        raise UserError(
            f"The process of {job.named} ended without a word (exit status {process.exitcode}), perhaps for want of "
            "memory, which fewer --jobs need less of; the same command goes on with what is saved."
        ) from end
    if kind == "show":
        label, seed, changes = content
        watcher.show(label, seed, **changes)
    elif kind == "finished":
        watcher.say_finished(*content)
    elif kind == "error":
        raise UserError(content)
    elif kind == "interrupted":
        raise Interrupted(content)
    else:
        process.join()
        return True
    return False


def _work(pickled: bytes, place: int, threads: int, own_files: Sequence[Path], telling: Connection) -> None:
    """What a process does."""
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(place % torch.cuda.device_count())
    try:
        for path in own_files:
            import_file(path)
        job: Job = pickle.loads(pickled)
        job.work(_PipeReporter(telling))
        telling.send(("ended", None))
    except Interrupted as stopped:
        telling.send(("interrupted", str(stopped)))
    except UserError as error:
        telling.send(("error", str(error)))
