"""Early stopping and the best weights, by planted validation values."""

import inspect
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from polymodal import corpora, recipes
from polymodal.cli.training import TrainOptions
from polymodal.errors import UserError
from polymodal.training import RuntimeConfig, train
from polymodal.training.trainer import Interrupted
from polymodal.types import Budget


def planted(values, seen):
    """Return a validation whose values are planted, and that keeps a copy of the weights of each call."""

    def validate(method, processor):
        seen.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
        value = values[len(seen) - 1]
        return {"val/x": SimpleNamespace(value=value, unit="percent", higher_is_better=True, headline=0)}

    return validate


def clip_run(values, seen, **given):
    recipe = recipes.find("clip")()
    return train(
        recipe,
        corpora.emoji(),
        Budget(steps=8),
        validate=planted(values, seen),
        **{"validations": 8} | given,
    )


def same(run, weights):
    held = run.model.state_dict()
    return all(torch.equal(held[name], weights[name]) for name in held)


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_stops_at_the_planted_step_and_keeps_the_best_weights(tmp_path, in_memory):
    seen = []
    out = None if in_memory else tmp_path / "run"
    run = clip_run([1, 3, 2, 2, 9, 9, 9, 9], seen, early_stop=2, out=out)
    assert run.record["stopped_early"] == run.record["steps"] == 4
    assert run.record["kept"] == {"step": 2, "metric": "val/x", "best_value": 3.0}
    assert same(run, seen[1])
    assert not same(run, seen[3])
    assert not list(tmp_path.glob("run/best-*"))


def test_the_last_weights_are_kept_where_asked(tmp_path):
    seen = []
    run = clip_run([1, 3, 2, 2, 9, 9, 9, 9], seen, early_stop=2, keep="last")
    assert run.record["steps"] == 4
    assert same(run, seen[3])


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(tmp_path):
    values, seen = [1, 3, 2, 2, 9, 9, 9, 9], []

    def stop(progress, fraction, losses):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        clip_run(values, seen, early_stop=2, out=tmp_path / "run", on_step=stop)
    before = len(seen)
    run = clip_run(values, seen, early_stop=2, out=tmp_path / "run")
    assert before == 3
    assert run.record["steps"] == 4
    assert same(run, seen[1])


def test_the_number_of_validations_is_chosen_and_kept(tmp_path):
    seen, given = [], {"early_stop": 1, "validations": 2, "out": tmp_path / "run"}
    run = clip_run([3, 2], seen, **given)
    assert len(seen) == 2
    assert run.record["steps"] == 8
    assert run.record["validations"] == json.loads((tmp_path / "run" / "run.json").read_text())["validations"] == 2
    clip_run([], [], **given)  # it is finished
    with pytest.raises(UserError, match="another validations"):
        clip_run([], [], **given | {"validations": 4})


def test_a_run_without_best_weights_goes_on_with_any_number_of_validations(tmp_path):
    seen = []
    clip_run([], seen, validations=0, out=tmp_path / "run")
    assert seen == []
    clip_run([], seen, validations=4, out=tmp_path / "run")


@pytest.mark.parametrize("given", [{"early_stop": 3, "validations": 2}, {"keep": "best", "validations": 0}])
def test_more_validations_than_there_are_cannot_decide(given):
    with pytest.raises(UserError, match=r"raise --validations"):
        clip_run([], [], **given)


def test_the_command_line_has_the_default_of_python():
    assert TrainOptions.validations == inspect.signature(train).parameters["validations"].default


def test_best_weights_need_a_validation():
    with pytest.raises(UserError, match="validate"):
        train(recipes.find("clip")(), corpora.emoji(), Budget(steps=2), keep="best")


def test_values_of_two_metrics_are_not_compared(tmp_path):
    """A metric may have no value in a validation, such as that of a class without examples."""
    values, seen = [2, 3, None, 2], []

    def validate(method, processor):
        value = planted([0] * 8, seen)(method, processor) and values[len(seen) - 1]
        rank = SimpleNamespace(value=1.0, unit="rank", higher_is_better=False, headline=None)
        first = SimpleNamespace(value=value, unit="percent", higher_is_better=True, headline=0)
        return {"val/rank": rank} | ({"val/x": first} if value is not None else {})

    recipe = recipes.find("clip")()
    run = train(recipe, corpora.emoji(), Budget(steps=4), validate=validate, validations=4, keep="best")
    assert run.record["kept"] == {"step": 2, "metric": "val/x", "best_value": 3.0}
    assert same(run, seen[1])


def test_the_best_weights_of_an_older_checkpoint_are_there_where_the_newest_is_damaged(tmp_path):
    values, seen = [1, 2, 3, 4, 0, 0, 0, 0], []
    runtime = RuntimeConfig(save_interval="1steps", keep_checkpoints=2)

    def kill(progress, fraction, losses):
        if progress.step == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        clip_run(values, seen, keep="best", out=tmp_path / "run", on_step=kill, runtime=runtime)
    (tensors,) = (tmp_path / "run" / "checkpoint-3").glob("tensors-*")
    tensors.write_bytes(tensors.read_bytes()[:-4])
    values[2:] = [0] * 6
    seen[2:] = []
    with pytest.warns(UserWarning, match="checkpoint-2"):
        run = clip_run(values, seen, keep="best", out=tmp_path / "run", runtime=runtime)
    assert run.record["kept"]["step"] == 2
    assert same(run, seen[1])


def test_damaged_best_weights_are_one_sentence(tmp_path):
    values, seen = [3, 2, 1, 1, 1, 1, 1, 1], []

    def damage(progress, fraction, losses):
        if progress.step == 7:
            (file,) = (tmp_path / "run").glob("best-*")
            file.write_bytes(file.read_bytes()[:-4])

    with pytest.raises(UserError, match=r"best-1\.safetensors.*polymodal resume"):
        clip_run(values, seen, keep="best", out=tmp_path / "run", on_step=damage)
