"""Several processes against one: equal losses and weights, global negatives, going on with another number of them.

The programs below run under torchrun with gloo, as a user would start them.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

TRAIN = [sys.executable, "-m", "polymodal", "train"]


def torchrun(processes, *arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    launch = [*launch[:5], "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*launch, *arguments]


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**more))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def options(out, recipe="clip", budget="6steps", batch=64):
    return [recipe, "--corpus", "emoji", "--budget", budget, "--batch-size", str(batch), "--out", str(out)]


def weights(directory):
    return load_file(directory / "model.safetensors")


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("recipe", ["clip", "siglip", "sparc"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_of_half_a_batch_equal_one_process_of_all(recipe, parallel, tmp_path):
    run([*TRAIN, *options(tmp_path / "one", recipe)])
    two = torchrun(2, "-m", "polymodal", "train", *options(tmp_path / "two", recipe), "--parallel", parallel)
    said = run(two)
    assert said.stdout.count("Trained 6 steps") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    histories = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, other in zip(*histories, strict=True):
        for name, loss in one.get("losses", {}).items():
            assert other["losses"][name] == pytest.approx(loss, abs=1e-5)
