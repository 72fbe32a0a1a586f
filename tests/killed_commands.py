"""Commands that are killed at random instants, and started again until they end.

python tests/killed_commands.py FOLDER KILLS SEED COMMAND ...: every command is killed so many times, at instants from
the seed: just after one of the calls by which Python opens, renames or removes files for writing, or after a random
time. Whenever it then ends by itself, everything that it left must be what an undisturbed command leaves. Prints the
number of kills, and how many of them left something half-written.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import polymodal as pm
import synthetic
from polymodal import cli
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.language_models import mono_internvl
from polymodal.training import train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
TIMES = {"seconds", "time", "date", "started", "ended", "created", "examples_per_second", "pid", "host"}

DATA, SMALL = ["--data", "../corpus"], ["--batch-size", "4", "--logger", "none"]
TINY = [
    "--image.width",
    "16",
    "--image.depth",
    "1",
    "--image.num-heads",
    "2",
    "--text.width",
    "16",
    "--text.depth",
    "1",
]
TINY += ["--text.num-heads", "2", "--text.vocab-size", "300", "--embed-dim", "16", "--image.patch-size", "16"]
SAMPLED = ["--num-return-sequences", "2", "--max-new-tokens", "2"]
SHORT, GRID = ["--budget", "2steps", "--seeds", "1"], ["--grid", "learning_rate=1e-4,1e-3"]
ANY_LANGUAGE = [f"--{texts}-filters.language=0" for texts in ("paragraph", "document")]
COMMANDS = {
    "train": ["train", "clip", *DATA, "--budget", "6steps", "--save-interval", "2steps", *SMALL, *TINY, "--out", "out"],
    "embed": ["embed", "../dual", "--out", "out.npz"],
    "data": ["data", "../corpus", "--out", "out.png"],
    "evaluate": ["evaluate", "../dual", *DATA, "--out", "out.json", "--plot", "plots"],
    "caption": ["caption", "../language", *DATA, *SAMPLED, "--out", "out"],
    "sample-preferences": ["sample-preferences", "../language", *DATA, *SAMPLED, "--out", "out"],
    "export": ["export", "../dual", "out"],
    "index": ["index", "../dual", "--out", "out"],
    "curate": ["curate", "wasm", "../pages", "--shard", "2", *ANY_LANGUAGE, "--out", "out"],
    "compare": ["compare", *(f"{name} --batch-size 4" for name in ("clip", "siglip")), *DATA, *SHORT, "--out", "out"],
    "tune": ["tune", "clip", *DATA, "--budget", "8steps", *SMALL, *TINY, *GRID, "--out", "out"],
}
REPEATED = (
    r"^polymodal: .*(is not empty|exists already|is there already)"  # what a command says of its own whole output
)
PROGRESS = ".unfinished.jsonl"  # of a command that was killed after its output was whole


class Killer:
    """An audit hook that ends the process just after its n-th change of a file; without n, it counts them."""

    def __init__(self, below: Path, number: int | None):
        self.below, self.number, self.changes, self.busy = str(below), number, 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if self.busy or not (opened or event in CHANGES) or not self._is_below(arguments[0]):
            return
        self.changes += 1
        if self.changes == self.number:
            self.busy = True
            if opened and random.random() < 0.5:  # an empty file, for nothing is written yet
                os.close(os.open(arguments[0], arguments[2], 0o666))
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.below)


def started(name: str, folder: Path, number: int | None) -> int:
    """Start a command in a child; it prints into `said`, and the number of its changes into `changes`, above."""
    pid = os.fork()
    if pid:
        return pid
    os.chdir(folder)
    with open("../said", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    status, killer = 0, Killer(folder, number)
    sys.argv = ["polymodal", *COMMANDS[name]]
    random.seed(number)
    sys.addaudithook(killer)
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    killer.busy = True
    Path("../changes").write_text(str(killer.changes))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def kill_and_repeat(name: str, place: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Returns how many kills hit, and how many of them left something that an undisturbed command does not leave."""
    whole, folder = place / f"{name}-whole", place / f"{name}-killed"
    whole.mkdir()
    begin = time.monotonic()
    _, status = os.waitpid(started(name, whole, None), 0)
    seconds, said = time.monotonic() - begin, (place / "said").read_text()
    assert status == 0, said
    changes, wanted = int((place / "changes").read_text()), content(name, whole)
    assert wanted
    hits = half = 0
    while True:
        folder.mkdir(exist_ok=True)
        number = rng.randint(1, changes) if hits < kills and rng.random() < 0.75 else None
        pid = started(name, folder, number)
        if number is None and hits < kills:
            time.sleep(rng.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            hits += 1
            half += bool({*names(folder)} - {*names(whole)})
            continue
        said = (place / "said").read_text()
        repeated = re.search(REPEATED, said, re.MULTILINE)
        assert os.WEXITSTATUS(status) == 0 or repeated, said
        differences = different(content(name, folder), wanted)
        if repeated:
            differences = [one for one in differences if not one.endswith(PROGRESS)]
        assert not differences, (name, differences, said)
        shutil.rmtree(folder)
        if hits >= kills:
            return hits, half


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def content(name: str, folder: Path) -> dict[str, Any]:
    """File -> its content, without times and names that differ from one command to the next."""
    if name == "index":
        return content_of_index(folder)
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path.relative_to(folder).as_posix(): of_file(path) for path in files}


def of_file(path: Path) -> Any:
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".npz":
        return {name: array.tobytes() for name, array in np.load(path).items()}
    if path.suffix == ".safetensors":
        return {name: tensor.float().numpy().tobytes() for name, tensor in load_file(path).items()}
    return None if path.suffix in (".html", ".md") else path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(one) for name, one in value.items() if name not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def content_of_index(folder: Path) -> dict[str, Any]:
    """Of the index, and the names of what is beside it; read in a child, for LanceDB does not survive a fork."""
    code = (
        "import sys, json, hashlib, lancedb; t = lancedb.connect(sys.argv[1]).open_table('examples');"
        "rows = sorted(t.to_arrow().to_pylist(), key=lambda row: row['key']);"
        "print(json.dumps([hashlib.sha256(repr(rows).encode()).hexdigest(), len(rows),"
        "sorted(c for i in t.list_indices() for c in i.columns)]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder / "out")], capture_output=True, text=True, check=True)
    return {"rows": json.loads(done.stdout), "beside": sorted(path.name for path in folder.iterdir())}


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name, ...) != other.get(name, ...)]


def prepare(place: Path, commands: list[str]) -> None:
    """Write the data and runs that the commands read."""
    quiet = RuntimeConfig(logger="none")
    synthetic.corpus(place / "corpus")
    corpus = pm.corpora.from_path(place / "corpus")
    if {"embed", "evaluate", "export", "index"} & {*commands}:
        train(clip.Recipe.tiny(), corpus, Budget(steps=1), out=place / "dual", runtime=quiet)
    if {"caption", "sample-preferences"} & {*commands}:
        train(mono_internvl.Recipe.tiny(), corpus, Budget(steps=2), out=place / "language", runtime=quiet)
    (place / "pages").mkdir()
    for number in range(7):
        words = [random.Random(number + 9 * word).sample("abcdefghijklmnop", 7) for word in range(20)]
        text = " ".join("".join(word) for word in words)
        (place / "pages" / f"{number}.html").write_text(f"<h1>Title</h1><p>{text}</p>" * (number > 0))


def main() -> None:
    place, kills, seed, commands = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    prepare(place, commands)
    for needed in ("torch._dynamo", "matplotlib.figure", "polymodal.evaluation", "polymodal.serving.embedding"):
        importlib.import_module(needed)  # by every child, which would import them anew
    for name in commands:
        begin = time.monotonic()
        hits, half = kill_and_repeat(name, place, kills, random.Random(f"{seed} {name}"))
        print(name, hits, half, f"{time.monotonic() - begin:.1f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
