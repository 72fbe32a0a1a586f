"""Runs: the same numbers from the same seed, stopping and going on, bad examples, bad losses."""

import dataclasses
import json
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from polymodal import corpora
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip
from polymodal.training import Interrupted, load_run, train
from polymodal.training.initialization import random_weights
from polymodal.training.optimizer import OptimizerConfig, adamw, learning_rate
from polymodal.training.trainer import copy_matching_weights
from polymodal.types import Budget
from test_corpora import own_csv, png

RECIPE = clip.Recipe(batch_size=32)


def weights(run):
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_two_runs_of_one_seed_have_equal_weights_and_another_seed_has_not(small_emoji):
    one, two, other = (train(RECIPE, small_emoji, Budget(steps=6), seed=seed) for seed in (3, 3, 4))
    assert_same(weights(one), weights(two))
    assert one.history[-1]["losses"] == two.history[-1]["losses"]
    assert not torch.equal(weights(one)["image_projection.weight"], weights(other)["image_projection.weight"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(small_emoji, tmp_path, ema):
    recipe = clip.Recipe(batch_size=32, optimizer=replace(clip.Recipe.optimizer, ema_decay=ema))
    whole = train(recipe, small_emoji, Budget(steps=12))

    def stop_at_five(progress, reached, losses):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="go on with: polymodal resume"):
        train(recipe, small_emoji, Budget(steps=12), out=tmp_path / "run", on_step=stop_at_five)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    with pytest.raises(UserError, match="has not finished; go on with"):
        load_run(tmp_path / "run")
    torch.manual_seed(99)
    resumed = train(recipe, small_emoji, Budget(steps=12), out=tmp_path / "run")
    assert resumed.record["steps"] == 12
    assert_same(weights(whole), weights(resumed))
    assert_same(weights(whole), weights(load_run(tmp_path / "run")))
    assert list((tmp_path / "run").glob("checkpoint-*")) == []


def test_a_finished_run_is_returned_and_another_run_is_refused(small_emoji, tmp_path):
    first = train(RECIPE, small_emoji, Budget(steps=3), out=tmp_path / "run")
    again = train(RECIPE, small_emoji, Budget(steps=3), out=tmp_path / "run")
    assert_same(weights(first), weights(again))
    with pytest.raises(UserError, match="another budget"):
        train(RECIPE, small_emoji, Budget(steps=4), out=tmp_path / "run")
    with pytest.raises(UserError, match="another seed"):
        train(RECIPE, small_emoji, Budget(steps=3), seed=1, out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a run"):
        train(RECIPE, small_emoji, Budget(steps=3), out=tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "precious"


def test_a_loaded_run_embeds_the_same(small_emoji, tmp_path):
    run = train(RECIPE, small_emoji, Budget(steps=3), out=tmp_path / "run")
    images = [small_emoji.value(row, "image") for row in range(3)]
    runs = run, load_run(tmp_path / "run")
    before, after = (each.embed(text=["cat", "a long caption"], image=images) for each in runs)
    for column in before:
        torch.testing.assert_close(before[column], after[column])


def test_damaged_weights_are_one_sentence(small_emoji, tmp_path):
    train(RECIPE, small_emoji, Budget(steps=2), out=tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="does not hold this run's weights"):
        load_run(tmp_path / "run")


def test_unreadable_examples_are_skipped_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    huge = png(size=(12_000, 12_000))
    rows = [{"key": f"k{row}", "image": png((row, 0, 0)), "caption": f"thing {row}"} for row in range(60)]
    rows = [row | {"split": "train"} for row in rows]
    rows[7]["image"] = rows[7]["image"][:40]
    rows[9]["caption"] = " "
    rows[11]["image"] = huge
    rows[13]["image"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    corpus = corpora.from_path(tmp_path / "pairs.parquet", text="caption")
    run = train(clip.Recipe(batch_size=20), corpus, Budget(steps=9), out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {"k7", "k9", "k11", "k13"}
    assert run.record["skipped"] == 4
    assert "pixels" in next(line["reason"] for line in lines if line["key"] == "k11")


def test_a_missing_file_of_a_csv_is_skipped_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    corpus = corpora.from_path(own_csv(tmp_path, absent=3))
    corpus = corpus.with_splits({"train": np.arange(len(corpus))})
    train(clip.Recipe(batch_size=10), corpus, Budget(steps=4), out=tmp_path / "run")
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "pictures/3.png"
    assert "cannot be read: No such file" in json.loads(line)["reason"]


def test_too_many_unreadable_examples_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    rows = [{"image": b"broken" if row % 2 else png((row, 0, 0)), "caption": f"thing {row}"} for row in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match="cannot be read, more than a tenth"):
        train(clip.Recipe(batch_size=10), corpora.from_path(tmp_path / "pairs.parquet"), Budget(steps=50))


def test_a_batch_larger_than_the_corpus_says_what_to_use(small_emoji):
    with pytest.raises(UserError, match=r"take a batch size of \d+ or less \(--batch-size, or batch_size=\.\.\.\)"):
        train(clip.Recipe(batch_size=5000), small_emoji, Budget(steps=1))


def test_a_loss_that_is_not_finite_stops_with_its_name(small_emoji):
    with pytest.raises(UserError, match="The loss 'contrastive' is nan"):
        train(
            clip.Recipe(
                batch_size=32,
                optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=0),
            ),
            small_emoji,
            Budget(steps=40),
        )


def test_training_works_outside_the_main_thread(small_emoji):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(RECIPE, small_emoji, Budget(steps=1))))
    thread.start()
    thread.join()
    assert runs[0].record["state"] == "finished"


def test_a_budget_of_seconds_or_examples_is_kept(small_emoji):
    assert train(RECIPE, small_emoji, Budget(examples=100)).record["examples"] == 128
    record = train(RECIPE, small_emoji, Budget(seconds=2)).record
    assert 2 <= record["seconds"] < 4


def test_learning_rate_rises_then_falls_to_zero():
    options = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(options, fraction / 100) for fraction in range(101)]
    assert max(rates) == rates[10] == pytest.approx(1)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_vectors_do_not_decay(small_emoji):
    model = RECIPE.build(fit_processor(RECIPE, small_emoji))
    decayed, kept = adamw(model, RECIPE.optimizer).param_groups
    assert kept["weight_decay"] == 0
    assert decayed["weight_decay"] == RECIPE.optimizer.weight_decay
    assert {parameter.ndim for parameter in kept["params"]} == {0, 1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_arms_of_a_comparison_share_the_weights_that_agree():
    one, other = torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Linear(3, 4))
    twin = torch.nn.Linear(3, 4)
    assert copy_matching_weights(one, twin) == 2
    assert torch.equal(one.weight, twin.weight)
    assert copy_matching_weights(one, other) == 0


def test_arms_of_a_comparison_keep_constants_of_their_own(small_emoji):
    processor = fit_processor(RECIPE, small_emoji)
    first = random_weights(lambda: RECIPE.build(processor), seed=3)
    other = dataclasses.replace(RECIPE, logit_scale_init=10.0).build(processor)
    copy_matching_weights(first, other)
    assert other.logit_scale().item() == pytest.approx(10.0)
    torch.manual_seed(3)
    torch.testing.assert_close(other.image_projection.weight, RECIPE.build(processor).image_projection.weight)
