"""A comparison with its runs side by side against one run after the other, on the same cores; paired rounds.

python benchmarks/jobs.py [--jobs 2] [--steps 400]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3


def seconds(jobs: int, steps: int) -> float:
    """Of `polymodal compare` of four runs, with all that it does."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "polymodal", "compare", "clip", "siglip", "--corpus", "emoji", "--seeds", "2"]
        command += ["--budget", f"{steps}steps", "--jobs", str(jobs), "--out", str(Path(folder) / "out")]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    rounds = [(seconds(1, options.steps), seconds(options.jobs, options.steps)) for _ in range(ROUNDS)]
    for jobs, taken in zip((1, options.jobs), zip(*rounds, strict=True), strict=True):
        print(f"--jobs {jobs}: {statistics.median(taken):6.1f} s for four runs of {options.steps} steps")
    print(f"{statistics.median(one / beside for one, beside in rounds):.2f} times as fast")


if __name__ == "__main__":
    main()
