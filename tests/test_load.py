"""A short form of `benchmarks/serve.py`: under load and attack all answers are right, and SIGTERM loses none."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import synthetic
from polymodal.recipes.dual_encoders import clip
from polymodal.training import load_run, train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

file = Path(__file__).parents[1] / "benchmarks" / "serve.py"
spec = importlib.util.spec_from_file_location("serve_under_load", file)
serve = sys.modules["serve_under_load"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)


def test_under_load_every_answer_is_right_and_none_is_lost(tmp_path):
    quiet = RuntimeConfig(logger="none")
    train(clip.Recipe.tiny(), synthetic.corpus(tmp_path / "data"), Budget(steps=1), out=tmp_path / "run", runtime=quiet)
    texts = [f"a {color} {kind}" for color in ("red", "green", "blue") for kind in ("cross", "disc", "square", "ring")]
    vectors = load_run(tmp_path / "run").embed(text=texts)["text"].numpy()
    took = serve.measure(str(tmp_path / "run"), texts, vectors, largest=64, clients=20, seconds=4, requests=400)
    counted = took["counted"]
    possible = {"right", "bad, 4xx", "refused without an answer", "slow, closed", "left", "answered after SIGTERM"}
    possible |= {f"{kind}, {status}" for kind in ("overload", "expensive", "good") for status in (200, 429, 504)}
    assert {kind for kind, count in counted.items() if count} <= possible, counted
    assert counted["right"] > 400
    assert min(counted[kind] for kind in ("bad, 4xx", "slow, closed", "left", "expensive, 200")) > 0
    assert counted["answered after SIGTERM"] == 20
    assert (took["status"], took["log"]) == (0, "")
    assert took["stopped"] < 20
    assert took["grown"] < 40, "MiB over 400 requests"
