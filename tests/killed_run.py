"""Train in a child that is killed at random instants, and go on each time, until 20 kills; then to the end.

python tests/killed_run.py CORPUS OUT: prints how many kills hit, and how many hit a half-written checkpoint.
"""

import importlib
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from polymodal import corpora
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

KILLS, BUDGET = 20, Budget(steps=200)


def child(out: Path) -> None:
    recipe = clip.Recipe(batch_size=16, optimizer=replace(clip.Recipe.optimizer, ema_decay=0.9))
    often = RuntimeConfig(save_interval="1steps", logger="none")
    train(recipe, CORPUS, BUDGET, out=out, runtime=often)


def main() -> None:
    out, rng, kills, half = Path(sys.argv[2]), random.Random(0), 0, 0
    while True:
        pid = os.fork()
        if pid == 0:
            child(out)
            os._exit(0)
        if kills < KILLS:
            before = latest(out)
            if rng.random() < 0.8:  # at some instant of the training; else of the start
                while latest(out) == before and not os.waitpid(pid, os.WNOHANG)[0]:
                    time.sleep(0.002)
            if kills % 4 == 0:  # a busy machine may write at none of the random instants
                while not half_written(out) and not os.waitpid(pid, os.WNOHANG)[0]:
                    pass
            else:
                time.sleep(rng.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, status
            break
        kills += 1
        half += half_written(out)
    print(kills, half)


def half_written(out: Path) -> bool:
    return any(out.glob(".checkpoint-*.partial")) or any(out.glob(".tensors-*"))


def latest(out: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*")), default=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for needed in ("torch._dynamo", "polymodal.evaluation"):  # by every child, which would import them anew
        importlib.import_module(needed)
    CORPUS = corpora.from_path(sys.argv[1])
    main()
