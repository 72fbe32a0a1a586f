"""Little memory ends in one sentence that blames no file, and a clock that is set back loses nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from torch.nn.modules.module import register_module_forward_pre_hook

from polymodal import cli
from polymodal.errors import MemoryExhausted, UserError, read_errors
from polymodal.recipes.dual_encoders import siglip
from polymodal.serving.server import create_app
from polymodal.training import Paused, checkpoint_reading, load_run, train
from polymodal.training.checkpoint_reading import checkpoints
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

BYTES = 1 << 50


def of_torch() -> None:
    torch.empty(BYTES, dtype=torch.uint8)


def of_numpy() -> None:
    np.empty(BYTES, np.uint8)


def of_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_the_system() -> None:
    raise OSError(12, os.strerror(12))


def of_a_library() -> None:
    raise ImportError("_ckdtree.so: failed to map segment from shared object")


@pytest.mark.parametrize("fails", [of_torch, of_numpy, of_gpu, of_the_system, of_a_library])
def test_a_lack_of_memory_is_one_sentence(fails, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(cli.COMMANDS, "list", lambda _: fails())
    monkeypatch.setattr(sys, "argv", ["polymodal", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("polymodal: There is not enough memory (")
    assert said.count("\n") == 1
    refused = pytest.raises(MemoryExhausted, match=r"a\.json cannot be read: there is not enough memory")
    with refused, read_errors(tmp_path / "a.json", "train the run again"):
        fails()


@pytest.mark.parametrize("error", [RuntimeError("can't optimize"), ImportError("No module named 'a'")])
def test_other_errors_stay_what_they_are(error, monkeypatch):
    def fails(_: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "list", fails)
    monkeypatch.setattr(sys, "argv", ["polymodal", "list"])
    with pytest.raises(type(error)):
        cli.main()


def test_a_checkpoint_that_memory_has_no_room_for_is_not_passed_over(corpus, tmp_path, monkeypatch):
    with pytest.raises(Paused):
        trained(corpus, tmp_path / "run", until_step=3)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2", "checkpoint-3"]
    read = checkpoint_reading._tensors

    def reads(path):
        return of_torch() if "checkpoint-3" in str(path) else read(path)

    monkeypatch.setattr(checkpoint_reading, "_tensors", reads)
    with pytest.raises(MemoryExhausted):
        checkpoint_reading.newest_whole(tmp_path / "run")


def test_a_server_without_memory_says_so_and_answers_the_next(corpus, tmp_path, monkeypatch, caplog):
    run = trained(corpus, tmp_path / "run")
    monkeypatch.setattr(checkpoint_reading, "_tensors", lambda _: of_torch())
    with pytest.raises(UserError, match="not enough memory"):
        load_run(tmp_path / "run")
    with TestClient(create_app(run), raise_server_exceptions=False) as client:
        with register_module_forward_pre_hook(lambda *_: of_torch()):
            first = client.post("/embed", json={"text": ["red"]})
        second = client.post("/embed", json={"text": ["red"]})
    assert (first.status_code, first.json()["error"]["code"]) == (503, "no_memory")
    assert second.status_code == 200
    assert "Traceback" not in caplog.text


def test_a_clock_that_is_set_back_changes_nothing(corpus, tmp_path, monkeypatch):
    straight = trained(corpus, tmp_path / "straight")
    clock = itertools.count(1e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with pytest.raises(Paused):
        trained(corpus, tmp_path / "back", until_step=3)
    os.utime(checkpoints(tmp_path / "back")[-1], (0, 0))  # the newest one has the oldest date
    steps: list[int] = []
    back = trained(corpus, tmp_path / "back", on_step=lambda progress, *_: steps.append(progress.step))
    assert steps == [4]  # gone on from step 3
    weights = back.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in straight.model.state_dict().items())
    history = (tmp_path / "back" / "history.jsonl").read_text().splitlines()
    entries = [(entry["step"], entry["seconds"]) for entry in map(json.loads, history)]
    assert entries == sorted(entries)


def trained(corpus, out, **named):
    recipe = dataclasses.replace(siglip.Recipe.tiny(), batch_size=8)
    runtime = RuntimeConfig(save_interval="1steps", keep_checkpoints=2, logger="none")
    return train(recipe, corpus, Budget(steps=4), out=out, runtime=runtime, **named)


def test_what_a_process_leaves_that_is_killed_after_its_run_has_finished_is_removed(corpus, tmp_path):
    trained(corpus, tmp_path / "run")
    left = [tmp_path / ".run.lock", tmp_path / "run" / "checkpoint-4" / "state.json"]
    left[1].parent.mkdir()
    for path in left:
        path.write_text("{}")
    trained(corpus, tmp_path / "run")
    assert not left[0].exists()
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.slow
def test_training_with_little_memory(few_emoji, tmp_path):
    limit = 4_000_000_000
    command = [sys.executable, "-m", "polymodal", "train", "clip", "--data", str(few_emoji), "--budget", "3steps"]
    command += ["--size", "large", "--batch-size", "64", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("polymodal: There is not enough memory (")
    assert "Traceback" not in done.stderr
