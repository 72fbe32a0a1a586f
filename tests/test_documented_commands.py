"""Every command and code block of the README and of the pages beside the tutorials runs, with a budget of a few steps.

They need every corpus that they name, so they belong to `make test-corpora`; what `tests/test_docs.py` runs everywhere
are the tutorials, and a look whether commands and flags exist.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import polymodal as pm
from test_docs import BLOCK, DOCS

pytestmark = pytest.mark.corpora

PAGES = [DOCS.parent / "README.md", DOCS / "corpora.md", DOCS / "pretrained-weights.md"]
PORT = 8000  # of `serve`, where nothing else is said

# What stands for what a test has none of: a hub, eight processes, a bucket, the time that training takes.
INSTEAD = {
    r"hf:openai/clip-vit-base-patch32": "hf:./CLIP",
    r"hf:facebook/dinov2-small": "hf:./DINO",
    r"hf:sentence-transformers/all-MiniLM-L6-v2": "hf:./MiniLM",
    r"--push \S+": "",
    r"--nproc-per-node 8": "--nproc-per-node 2",
    r"s3://bucket/\*\.tar": "shards/*.tar",
    r"--batch-size 32768 --micro-batch 256": "--batch-size 16 --micro-batch 4 --stream",
    r"--budget \S+": "--budget 3steps",
    r"--seeds \d+": "--seeds 1",
    r"(polymodal sample-preferences \S+)": r"\1 --examples 60 --num-return-sequences 4",
    r"(polymodal train mpo)": r"\1 --batch-size 4",
    r"(polymodal caption \S+)": r"\1 --num-return-sequences 2 --num-views 1",
    r"(polymodal attack .+)": r"\1 --examples 8",
}
LEFT_OUT = ("pip install", "polymodal corpora remove")  # of the reader's own machine


def command_of(line: str) -> str:
    """The command as it is run here."""
    command = line.partition("  #")[0].strip()
    for written, instead in INSTEAD.items():
        command = re.sub(written, instead, command)
    if re.search(r"polymodal (train|compare)\b", command) and "--budget" not in command:
        command += " --budget 3steps"
    return command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a reader's own: pairs, an image, a clip, pages, texts, captions, weights, runs of two methods."""
    from transformers import AutoModel, CLIPImageProcessor

    from tiny_checkpoints import IMAGE_MODELS, TEXT_MODELS, save, save_tokenizer

    rng = np.random.default_rng(0)
    fruits = ["a red fruit", "a green leaf", "a small ship", "a yellow sun"]
    images = []
    for number in range(240):
        path = tmp_path / f"{number}.png"
        PILImage.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
        images.append(path.read_bytes())
    captions = [f"{fruits[number % 4]} of kind {number}" for number in range(240)]
    table = {"picture": images, "caption": captions, "price": list(range(240))}
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    for name in ("picture.png", "apple.png"):
        (tmp_path / name).write_bytes(images[0])
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as shard:
        for number in range(64):
            (tmp_path / f"{number}.txt").write_text(captions[number])
            shard.add(tmp_path / f"{number}.png", f"{number}.png")
            shard.add(tmp_path / f"{number}.txt", f"{number}.txt")

    clips, manuals = pm.corpora.clips(), pm.corpora.manuals()
    (tmp_path / "clip.mp4").write_bytes(clips.raw(0, "video"))
    (tmp_path / "pages").mkdir()
    arabic = [row for row in range(len(manuals)) if "/ar-MA/" in manuals.key(row)]
    for row in arabic:
        (tmp_path / "pages" / f"{row}.html").write_text(manuals.raw(row, "html"), encoding="utf-8")
    texts = [piece.text for row in arabic for piece in manuals.value(row, "document") if piece.text]
    (tmp_path / "arabic.txt").write_text("\n".join(texts), encoding="utf-8")
    said = {"caption": "a red bus by a lake", "references": ["a bus near the water", "a red car"]}
    (tmp_path / "captions.jsonl").write_text(json.dumps(said) + "\n", encoding="utf-8")

    save(AutoModel.from_config(IMAGE_MODELS["clip"]()), tmp_path / "CLIP")
    save(AutoModel.from_config(IMAGE_MODELS["dinov2"]()), tmp_path / "DINO")
    save(AutoModel.from_config(TEXT_MODELS["bert"]()), tmp_path / "MiniLM")
    square = {"shortest_edge": 32}, {"height": 32, "width": 32}
    for name in ("CLIP", "DINO"):
        CLIPImageProcessor(size=square[0], crop_size=square[1]).save_pretrained(tmp_path / name)
    for name in ("CLIP", "MiniLM"):
        save_tokenizer(tmp_path / name, fruits)
    return tmp_path


class Reader:
    """Somebody who types what a page says, one command after the other."""

    def __init__(self, folder: Path):
        self.folder = folder
        tools = Path(sys.executable).parent
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{tools}:{os.environ['PATH']}"}

    def types(self, command: str) -> None:
        done = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def serves(self, command: str) -> None:
        """Until it answers; then Ctrl-C."""
        server = subprocess.Popen(
            command.split(), cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        try:
            for _ in range(240):
                assert server.poll() is None, server.stderr and server.stderr.read()
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=1):
                        break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail(f"{command} does not answer")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)

    def runs(self, code: str) -> None:
        few = code.replace("seconds=60", "steps=3").replace('"60s"', '"3steps"')
        self.types(f"{sys.executable} - <<'END'\n{PRELUDE}{few}\nEND")


# What an excerpt takes for granted.
PRELUDE = """
import dataclasses
from dataclasses import dataclass
import polymodal as pm
from polymodal.recipes.dual_encoders import clip
from torch.nn import functional as F
corpus = pm.corpora.emoji()
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_code_block_of_a_page_runs(page: Path, folder: Path) -> None:
    reader = Reader(folder)
    for name in ("clip", "siglip"):
        reader.types(f"polymodal train {name} --corpus emoji --budget 3steps --out runs/{name}")
    if page.stem != "README":
        reader.types("polymodal train clip --data pairs.parquet --budget 3steps --out runs/mine")
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            reader.runs(text)
            continue
        for line in text.splitlines():
            assert line.startswith("$ "), line
            command = command_of(line[2:])
            if command.startswith("polymodal serve"):
                reader.serves(command)
            elif not command.startswith(LEFT_OUT):
                reader.types(command)
