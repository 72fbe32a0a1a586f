"""Runs whose files were damaged or edited: they work as before, or are refused in a sentence that names the file."""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

import polymodal as pm
from polymodal.errors import UserError
from polymodal.recipes import clip
from polymodal.training import Interrupted, load_run, train
from polymodal.training.recipe_record import recipe_from_record
from polymodal.training.run import read_record
from polymodal.training.runtime import RuntimeConfig
from polymodal.training.training_rows import trained_on
from polymodal.types import Budget

SMALL = replace(clip.Recipe(), batch_size=8)
OFTEN = RuntimeConfig(save_interval="1steps", keep_checkpoints=3, logger="none")
FILES = ("run.json", "model.safetensors", "processor.json", "tokenizer.json", "history.jsonl", "training_rows.npz")


def write_data(folder: Path, count: int = 30) -> Path:
    for place in range(count):
        PILImage.new("RGB", (16, 16), (place * 8, 0, 255 - place * 8)).save(folder / f"{place}.png")
    lines = [json.dumps({"image": f"{place}.png", "text": f"shade {place}"}) for place in range(count)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("shades"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(SMALL, pm.corpora.from_path(data), Budget(steps=2), out=out)
    return out


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at its third of four steps, with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    begin(data, out, steps_until_stop=3)
    return out


def begin(data: Path, out: Path, steps_until_stop: int) -> None:
    import signal

    def on_step(progress, fraction, losses):
        if progress.step == steps_until_stop:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(SMALL, pm.corpora.from_path(data), Budget(steps=4), out=out, runtime=OFTEN, on_step=on_step)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def grow(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 9)) + content[place:]


def edit(content: bytes, rng: random.Random) -> bytes:
    """Another value in place of one in JSON; other files are flipped."""
    try:
        value = json.loads(content)
    except ValueError:
        return flip(content, rng)
    inner, path = value, []
    while isinstance(inner, dict | list) and inner and (not path or rng.random() < 0.8):
        path.append(rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner))))
        inner = inner[path[-1]]
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    if path:
        parent[path[-1]] = rng.choice(
            [None, -1, 1e300, float("nan"), 10**40, "", "x", [], {}, True, [[]], {"class": 1}]
        )
    return json.dumps(value).encode()


DAMAGE: list[Callable[[bytes, random.Random], bytes]] = [cut, flip, grow, edit]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_a_sentence_or_changes_nothing(name, finished, data, tmp_path):
    corpus = pm.corpora.from_path(data)
    expected = load_run(finished).embed(text=["shade 3"])["text"]
    rows = trained_on(finished, corpus, corpus.rows("train"))
    assert len(rows)
    run, seed = tmp_path / "run", 0
    shutil.copytree(finished, run)
    for seed in range(16 if name == "run.json" else 8):
        rng = random.Random(f"{name} {seed}")
        damaged = DAMAGE[seed % len(DAMAGE)]((finished / name).read_bytes(), rng)
        (run / name).write_bytes(damaged)
        try:
            found = load_run(run).embed(text=["shade 3"])["text"]
            still = trained_on(run, corpus, corpus.rows("train"))
        except UserError as error:
            said = str(error)
        else:
            assert torch.equal(found, expected) or name == "run.json", seed
            assert still.tolist() == rows.tolist(), seed
            continue
        assert len(said.splitlines()) == 1, seed
        assert str(run) in said, seed
    (run / name).unlink()
    if name != "training_rows.npz":
        with pytest.raises(UserError, match="has not finished" if name == "model.safetensors" else f"{name}|not a run"):
            load_run(run)


@pytest.mark.parametrize(
    "values",
    [
        {"seed": "1"},
        {"seed": 10**40},
        {"budget": 3},
        {"corpus": []},
        {"state": "done"},
        {"steps": float("nan")},
        {"checksums": {"../../secret": "0"}},
        {"checksums": []},
    ],
)
def test_a_record_of_other_types_and_ranges(values, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | values))
    with pytest.raises(UserError, match=r"run\.json"):
        load_run(run)


def test_a_hyper_parameter_outside_its_range(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    record = read_record(run)
    record["recipe"]["values"]["batch_size"] = -8
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"run\.json has a value outside its range: --batch-size"):
        load_run(run)


@pytest.mark.parametrize("kind", ["nan", "type", "shape", "extra", "edited"])
def test_weights_of_other_types_shapes_and_values(kind, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = load_file(run / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.ndim > 1)
    kept = {}
    if kind == "nan":
        weights[name][0] = float("nan")
    elif kind == "type":
        weights[name] = weights[name].to(torch.int8)
    elif kind == "shape":
        weights[name] = weights[name][:1].clone()
    elif kind == "extra":
        weights["more"] = torch.zeros(1)
    else:
        weights[name][0] += 1
        kept = {"checksum": "00000000"}
    save_file(weights, run / "model.safetensors", kept)
    with pytest.raises(UserError, match=r"model\.safetensors.*(train|copy)"):
        load_run(run)


def resumed(run: Path, data: Path):
    record = read_record(run)
    return train(
        recipe_from_record(record["recipe"], run), pm.corpora.from_path(data), Budget(steps=4), out=run, runtime=OFTEN
    )


@pytest.mark.parametrize("name", ["state.json", "tensors-1-of-1.safetensors"])
@pytest.mark.parametrize("damage", [cut, flip, edit])
def test_the_newest_whole_checkpoint_is_used_and_said(name, damage, stopped, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    file = run / "checkpoint-3" / name
    file.write_bytes(damage(file.read_bytes(), random.Random(1)))
    with pytest.warns(UserWarning, match=r"checkpoint-3.*goes on from .*checkpoint-2, the newest whole one"):
        done = resumed(run, data)
    assert [entry["step"] for entry in done.history][-1] == 4


def test_without_a_whole_checkpoint_it_is_said_what_to_do(stopped, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "state.json").write_text("{")
    (run / "checkpoint-x").mkdir()  # of somebody else
    with pytest.raises(UserError, match=r"No checkpoint of .* is whole: remove this folder"):
        resumed(run, data)


def test_a_resume_with_other_data_is_refused(tmp_path):
    (tmp_path / "shades").mkdir()
    data = write_data(tmp_path / "shades")
    begin(data, tmp_path / "run", steps_until_stop=1)
    write_data(tmp_path / "shades", 15)
    with pytest.raises(UserError, match=r"The data changed since .* was begun"):
        resumed(tmp_path / "run", data)
    write_data(tmp_path / "shades")
    assert resumed(tmp_path / "run", data).record["state"] == "finished"


def test_weights_that_are_not_finite_replace_no_checkpoint(data, tmp_path):
    run = tmp_path / "run"

    def on_step(progress, fraction, losses):
        if progress.step == 2:
            with torch.no_grad():
                next(iter(model.parameters())).fill_(float("inf"))

    recipe = SMALL
    built = type(recipe).build
    model = None

    def build(self, processor):
        nonlocal model
        model = built(self, processor)
        return model

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(type(recipe), "build", build)
        with pytest.raises(UserError, match=r"not finite after step 2; the checkpoints of .* before it are kept"):
            train(recipe, pm.corpora.from_path(data), Budget(steps=4), out=run, runtime=OFTEN, on_step=on_step)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
