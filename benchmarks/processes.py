"""Two processes against one: examples a second of CLIP on equal global batches, one core a process, paired rounds.

python benchmarks/processes.py [--parallel fsdp]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS, STEPS, BATCH = 3, 24, 64
MODEL = [
    "--image.stem",
    "--image.image-size",
    "64",
    "--image.patch-size",
    "8",
    "--image.width",
    "192",
    "--image.depth",
    "6",
    "--text.width",
    "192",
]


def examples_a_second(processes: int, parallel: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
        launch += ["--rdzv-endpoint", "localhost:0"]
        train = ["-m", "polymodal", "train", "clip", "--corpus", "emoji", "--budget", f"{STEPS}steps", "--seed", "0"]
        train += ["--batch-size", str(BATCH), "--out", str(out), "--logger", "none", "--parallel", parallel, *MODEL]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *(launch if processes > 1 else []), *train]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        logged = [entry for entry in history if "losses" in entry]  # without the first steps, which warm up
        first, last = logged[0], logged[-1]
        return (last["examples"] - first["examples"]) / (last["seconds"] - first["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", default="ddp", choices=("ddp", "fsdp"))
    parallel = parser.parse_args().parallel
    pairs = [(examples_a_second(1, parallel), examples_a_second(2, parallel)) for _ in range(ROUNDS)]
    ratio = statistics.median(two / one for one, two in pairs)
    for count, rates in zip((1, 2), zip(*pairs, strict=True), strict=True):
        print(f"{count} process(es): {statistics.median(rates):7.1f} examples/s")
    print(f"{parallel}: {ratio:.2f} x")


if __name__ == "__main__":
    main()
