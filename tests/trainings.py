"""Two processes that train what they are told, one command after the other, for starting takes longer than a few steps.

`python tests/trainings.py` reads from its input lines of JSON, `[[ARGUMENTS, STEP], ...]`: every training is stopped by
SIGTERM at that step, if there is one, and resumed when its only argument is the folder of a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import torch

import polymodal.training
from polymodal.cli.training import resume, train
from polymodal.training import Interrupted

DONE = "done with all of them"


def run_training(arguments: list[str], stop_at: int | None = None) -> None:
    """What the command line does; `stop_at` is the step at which the process gets SIGTERM."""
    real = polymodal.training.train

    def stopped(*positional, on_step, **named):
        def step(progress, reached, losses):
            on_step(progress, reached, losses)
            if progress.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        return real(*positional, on_step=step, **named)

    with mock.patch.object(polymodal.training, "train", stopped):
        command = resume if len(arguments) == 1 else train
        with contextlib.suppress(Interrupted) if stop_at else contextlib.nullcontext():
            command(arguments)
            assert stop_at is None, "the training ended before that step"


class TwoProcesses:
    """Processes as torchrun starts them, with gloo and a store that their parent serves."""

    def __init__(self, folder: Path) -> None:
        self.store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(self.store.port), "OMP_NUM_THREADS": "1"}
        shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.errors = [folder / f"errors-{rank}.txt" for rank in range(2)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors.open("w"),
                text=True,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank, errors in enumerate(self.errors)
        ]

    def train(self, *commands: list[str], stop_at: int | None = None) -> str:
        """What the first process printed."""
        line = json.dumps([(command, stop_at) for command in commands]) + "\n"
        for process in self.processes:
            process.stdin.write(line)
            process.stdin.flush()
        watch = threading.Timer(240, self.close)
        watch.start()
        printed = [self._printed(process) for process in self.processes]
        watch.cancel()
        return printed[0]

    def _printed(self, process: subprocess.Popen) -> str:
        lines = []
        for line in process.stdout:
            if line.strip() == DONE:
                return "".join(lines)
            lines.append(line)
        self.close()
        raise AssertionError("\n".join(errors.read_text()[-5000:] for errors in self.errors))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    for line in sys.stdin:
        for arguments, stop_at in json.loads(line):
            run_training(arguments, stop_at)
            if torch.distributed.is_initialized():  # after an interruption, which is the same step for both
                torch.distributed.barrier()
                torch.distributed.destroy_process_group()
        print(DONE, flush=True)
    sys.stdout.flush()
    os._exit(0)  # as the command line does: threads of gloo now and then abort while Python shuts down
