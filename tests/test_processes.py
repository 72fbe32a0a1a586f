"""Several processes against one: equal losses and weights, global negatives, going on with another number of them.

Two processes train for all tests of this file (`trainings.py`); tests marked `slow` start them by torchrun.
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

from trainings import TwoProcesses, run_training


def torchrun(processes, *arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*launch, *arguments]


def environment(**more):
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def run(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(**more))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# Every step multiplies what rounding did: least in towers without maxima and at a low learning rate.
SMOOTH = ["--image.stem", "--image.depth", "2", "--image.pool-type", "avg", "--learning-rate", "5e-4"]


def options(corpus, out, recipe="clip", budget="4steps", batch=32):
    data = ["--data", str(corpus), "--batch-size", str(batch), "--logger", "none"]
    return [recipe, *data, *SMOOTH, "--budget", budget, "--out", str(out)]


def weights(directory):
    return load_file(directory / "model.safetensors")


def history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


def train_by_one(*commands, stop_at=None):
    for command in commands:
        run_training(command, stop_at)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    processes = TwoProcesses(tmp_path_factory.mktemp("two"))
    yield processes
    processes.close()


RECIPES, PARALLEL = ("clip", "siglip", "sparc", "improved_clip"), ("ddp", "fsdp")


@pytest.fixture(scope="module")
def of_recipes(tmp_path_factory, two, few_emoji):
    """A folder in which one process and two have trained every recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    train_by_one(*(options(few_emoji, folder / recipe / "one", recipe) for recipe in RECIPES))
    kinds = [(recipe, parallel) for recipe in RECIPES for parallel in PARALLEL]
    said = two.train(*([*options(few_emoji, folder / one / kind, one), "--parallel", kind] for one, kind in kinds))
    assert said.count("Trained 4 steps") == len(kinds)
    return folder


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_of_half_a_batch_equal_one_process_of_all(of_recipes, recipe, parallel):
    one, two = of_recipes / recipe / "one", of_recipes / recipe / parallel
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    assert_close(weights(one), weights(two))
    for own, other in zip(history(one), history(two), strict=True):
        for name, loss in own.get("losses", {}).items():
            assert other["losses"][name] == pytest.approx(loss, abs=1e-5)


ADDITIONS = {
    "bounded": ("--num-strong-views", "0", "--logit-scale-init", "100"),  # its bound is held after each step
    "barlip": ("--ssl-loss", "barlip"),
    "byolip": ("--ssl-loss", "byolip"),
    "swalip": ("--ssl-loss", "swalip", "--label-smoothing", "0"),
}


@pytest.mark.parametrize("addition", ADDITIONS)
def test_losses_with_statistics_over_the_batch_take_all_of_it(addition, two, few_emoji, tmp_path):
    for train, count in ((train_by_one, "one"), (two.train, "two")):
        train([*options(few_emoji, tmp_path / count, "improved_clip", "3steps"), *ADDITIONS[addition]])
    assert_close(weights(tmp_path / "one"), weights(tmp_path / "two"), 1e-4)


def test_micro_batches_on_two_processes_keep_all_negatives(two, few_emoji, tmp_path):
    """Also where a class token and an end mark are all that is asked for of the towers' last blocks."""
    marks = ["--image.pool-type", "cls", "--text.depth", "1", "--text.pool-type", "eos"]
    method, more = ["--ema-decay", "0.5", *marks], ["--micro-batch", "4", "--activation-checkpointing"]
    train_by_one([*options(few_emoji, tmp_path / "one"), *method])
    two.train(*([*options(few_emoji, tmp_path / kind), *method, *more, "--parallel", kind] for kind in PARALLEL))
    for kind in PARALLEL:
        assert_close(weights(tmp_path / "one"), weights(tmp_path / kind))


def test_a_run_goes_on_with_another_number_of_processes(two, few_emoji, tmp_path):
    """Stopped by SIGTERM in two processes, then in one, and ended by two."""
    out, budget = {kind: tmp_path / kind for kind in PARALLEL}, "16steps"
    train_by_one(options(few_emoji, tmp_path / "whole", budget=budget))
    two.train(*([*options(few_emoji, out[kind], budget=budget), "--parallel", kind] for kind in PARALLEL), stop_at=3)
    assert not list(tmp_path.glob("*/model.safetensors"))[1:], "of the whole run alone"
    train_by_one(*([str(out[kind])] for kind in PARALLEL), stop_at=8)
    for kind in PARALLEL:
        (checkpoint,) = out[kind].glob("checkpoint-*")
        assert 8 <= int(checkpoint.name.rpartition("-")[2]) < 16
    two.train(*([str(out[kind])] for kind in PARALLEL))
    for kind in PARALLEL:
        record = json.loads((out[kind] / "run.json").read_text())
        assert (record["state"], record["steps"], record["examples"]) == ("finished", 16, 16 * 32)
        assert_close(weights(tmp_path / "whole"), weights(out[kind]), tolerance=1e-4)


def stop_at(command, step, directory):
    """Start a command that saves often, and end it with SIGTERM once a checkpoint of at least `step` is there."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    until = time.monotonic() + 120
    while not any(int(path.name.rpartition("-")[2]) >= step for path in directory.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_run_of_torchrun_goes_on_with_another_number_of_processes(parallel, few_emoji, tmp_path):
    budget, saving = "60steps", ["--save-interval", "1steps", "--parallel", parallel]
    train_by_one(options(few_emoji, tmp_path / "whole", budget=budget, batch=64))
    out = tmp_path / "run"
    command = options(few_emoji, out, budget=budget, batch=64)
    stop_at(torchrun(2, "-m", "polymodal", "train", *command, *saving), 3, out)
    assert not (out / "model.safetensors").exists()
    stop_at([sys.executable, "-m", "polymodal", "resume", str(out)], 12, out)
    assert not (out / "model.safetensors").exists()
    run(torchrun(2, "-m", "polymodal", "resume", str(out)))
    record = json.loads((out / "run.json").read_text())
    assert (record["state"], record["steps"], record["examples"]) == ("finished", 60, 60 * 64)
    assert_close(weights(tmp_path / "whole"), weights(out), tolerance=2e-4)  # rounding grows over 60 steps


def test_stages_and_validations_are_the_same_whole_and_sharded(two, few_scenes, tmp_path):
    """A look at the validation split gathers weights, and a stage freezes others: neither may disturb what learns."""
    small = ["--language-model.width", "32", "--language-model.depth", "1", "--language-model.mlp-dim", "48"]
    command = ["mono_internvl", "--data", str(few_scenes), "--budget", "10steps", "--batch-size", "4", *small]
    command += ["--logger", "none"]
    two.train(*([*command, "--parallel", kind, "--out", str(tmp_path / kind)] for kind in PARALLEL))
    told = history(tmp_path / "fsdp")
    assert sum("validation" in entry for entry in told) > 1
    assert len({entry["stage"] for entry in told if "losses" in entry}) == 5
    assert_close(weights(tmp_path / "ddp"), weights(tmp_path / "fsdp"))


def test_what_begins_with_features_of_sharded_encoders_learns(two, few_emoji, tmp_path):
    """Embedding all nodes gathers weights, of which the optimizer of the stage must not take the copies."""
    command = ["uknow", "--data", str(few_emoji), "--budget", "6steps", "--batch-size", "8", "--logger", "none"]
    command += ["--reasoning-fraction", "0.5"]
    two.train(*([*command, "--parallel", kind, "--out", str(tmp_path / kind)] for kind in PARALLEL))
    assert_close(weights(tmp_path / "ddp"), weights(tmp_path / "fsdp"), tolerance=1e-4)


def test_experts_and_their_routers_are_the_same_whole_and_sharded(two, few_scenes, tmp_path):
    """What a look at the validation split gathered first is written into again, and a router's loss leaves no block."""
    small = ["--language-model.width", "32", "--language-model.depth", "2", "--language-model.mlp-dim", "48"]
    small += ["--tile-size", "32", "--mod-capacity", "0.5", "--upcycling-fraction", "0.4", "--logger", "none"]
    command = ["moma", "--data", str(few_scenes), "--budget", "12steps", "--batch-size", "8", *small]
    two.train(*([*command, "--parallel", kind, "--out", str(tmp_path / kind)] for kind in PARALLEL))
    losses, others = ([entry["losses"] for entry in history(tmp_path / kind) if "losses" in entry] for kind in PARALLEL)
    assert set(losses[-1]) == {"text", "image", "routers"}
    for own, theirs in zip(losses, others, strict=True):
        assert theirs == pytest.approx(own, abs=2e-3)  # a token more or less is chosen where scores are almost equal


def test_a_batch_that_does_not_divide_is_one_sentence(few_emoji, tmp_path):
    command = torchrun(2, "-m", "polymodal", "train", *options(few_emoji, tmp_path / "run", batch=33))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode != 0
    assert "A batch of 33 does not divide over 2 processes; use --batch-size 32." in done.stderr
    assert not (tmp_path / "run").exists()
