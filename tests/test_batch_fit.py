"""Batches that fit few training rows: chosen where the user sets none, and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import polymodal as pm
from polymodal.errors import UserError
from polymodal.recipes.dual_encoders import clip, clippings, webli_100b
from polymodal.recipes.generation import inductive_moment_matching
from polymodal.recipes.optimization import gradient_harmonization
from polymodal.training.batch_fit import fitting_batch
from test_corpora import pairs

SAID = "Batches have 12 examples in place of 96, as the training split of 'pairs' has only 24"


def photos(folder: Path, rows: int) -> Path:
    """A Parquet file with so many training pairs, and a validation and a test pair."""
    splits = ["train"] * rows + ["validation", "test"]
    table = [one | {"split": split} for one, split in zip(pairs(rows + 2), splits, strict=True)]
    pq.write_table(pa.Table.from_pylist(table), folder / "pairs.parquet")
    return folder / "pairs.parquet"


@pytest.mark.parametrize("kind", [clip, clippings, inductive_moment_matching, gradient_harmonization])
@pytest.mark.parametrize(("rows", "expected"), [(40, 20), (28, 12), (5, 2)])
def test_a_batch_of_at_most_half_of_the_rows_is_found(kind, rows, expected, tmp_path):
    corpus = pm.corpora.from_path(photos(tmp_path, rows))
    if rows == 5 and kind in (clippings, inductive_moment_matching):  # batches of a multiple of three, of four
        assert fitting_batch(kind.Recipe(), corpus) == (kind.Recipe(), "")
        return
    recipe, _ = fitting_batch(kind.Recipe(), corpus)
    assert recipe.batch_size <= expected
    assert recipe.batch_size >= expected / 2


def test_a_batch_that_fits_stays(tmp_path):
    corpus = pm.corpora.from_path(photos(tmp_path, 100))
    assert fitting_batch(clip.Recipe(), corpus) == (clip.Recipe(), "")


def test_a_training_on_few_photographs_says_its_batch(polymodal, tmp_path):
    data = str(photos(tmp_path, 24))
    done = polymodal("train", "clip", "--data", data, "--budget", "1steps", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert SAID in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["values"]["batch_size"] == 12
    done = polymodal("train", "clip", "--data", data, "--batch-size", "48", "--budget", "1steps", "--out", "other")
    assert done.returncode == 2
    assert "less than one batch of 48" in done.stderr


def test_a_comparison_and_a_tuning_fit_their_batches(polymodal, tmp_path):
    data = ("--data", str(photos(tmp_path, 24)))
    given = ("--budget", "2steps", "--seeds", "1", "--validations", "2")
    done = polymodal("compare", "clip", "clip --batch-size 8", *data, *given)
    assert done.returncode == 0, done.stderr
    history = (tmp_path / "comparison" / "runs" / "clip" / "seed-0" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history if "validation" in json.loads(line)] == [1, 2]
    assert f"clip: {SAID}" in done.stderr
    assert done.stderr.count("in place of") == 1
    grid = ("--grid", "learning-rate=1e-3,1e-4")
    done = polymodal("tune", "clip", *data, "--budget", "6steps", *grid)
    assert done.returncode == 0, done.stderr
    assert SAID in " ".join(done.stderr.split())


def test_python_fits_the_batch_of_a_name_and_keeps_that_of_an_instance(tmp_path):
    data = photos(tmp_path, 24)
    with pytest.warns(UserWarning, match=SAID):
        run = pm.train("clip", data, "1steps", progress=False)
    assert run.recipe.batch_size == 12
    with pytest.raises(UserError, match="less than one batch of 48"):
        pm.train(clip.Recipe(batch_size=48), data, "1steps", progress=False)


def test_a_batch_fits_what_a_stage_selects(tmp_path):
    corpus = pm.corpora.from_path(photos(tmp_path, 200))
    whole, few = webli_100b.Recipe(batch_size=96), webli_100b.Recipe(batch_size=96, unique_fraction=0.2)
    assert fitting_batch(whole, corpus) == (whole, "")
    selected = len(few.training_rows(corpus))
    recipe, changed = fitting_batch(few, corpus)
    assert 20 <= selected <= 60
    assert recipe == replace(few, batch_size=recipe.batch_size)
    assert selected / 4 <= recipe.batch_size <= selected / 2
    assert f"as the stage 'training' on 'pairs' has only {selected};" in changed


def test_one_row_keeps_the_sentence_of_training(tmp_path):
    corpus = pm.corpora.from_path(photos(tmp_path, 1))
    assert fitting_batch(clip.Recipe(), corpus) == (clip.Recipe(), "")
