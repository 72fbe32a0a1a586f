"""Incomplete tables: encoders that mask missing cells, protocols of missing cells, imputation and classification."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import ks_2samp

from polymodal import corpora
from polymodal.corpora import Corpus
from polymodal.data.columns.table import TableColumn
from polymodal.data.loader import Reader
from polymodal.data.processor import fit_processor
from polymodal.encoders.table import IncompleteTableEncoder, TableEncoderConfig
from polymodal.errors import UserError
from polymodal.evaluation import evaluate, validation
from polymodal.evaluation.missing_modalities import (
    PROTOCOLS,
    Labelled,
    columns_by_importance,
    columns_of,
    missing_cells,
)
from polymodal.evaluation.task import available_modalities
from polymodal.evaluation.tasks import label_classification
from polymodal.evaluation.tasks.label_classification import CanClassify
from polymodal.evaluation.tasks.table_imputation import imputation_scores
from polymodal.modalities import Table, Text
from polymodal.modalities.table import TableRow, TableRows, replace_cells, sample_columns
from polymodal.recipes.science import tip
from polymodal.rng import ExampleRNG
from polymodal.serving.embedding import write_embeddings
from polymodal.serving.search import search_corpus
from polymodal.training import load_run, train
from polymodal.training.optimizer import OptimizerConfig
from polymodal.training.run import answers
from polymodal.types import Budget


def table(batch: int = 6, numeric: int = 3, seed: int = 0) -> TableRows:
    generator = torch.Generator().manual_seed(seed)
    categories = torch.stack([torch.randint(n, (batch,), generator=generator) for n in (3, 2)], dim=1)
    return TableRows(torch.randn(batch, numeric, generator=generator), categories)


def encoder() -> IncompleteTableEncoder:
    torch.manual_seed(0)
    return IncompleteTableEncoder(TableEncoderConfig(), 3, (3, 2)).eval()


@pytest.mark.parametrize("column", [1, 4])
def test_nobody_reads_a_missing_cell_but_it_reads_what_is_there(column: int) -> None:
    own = encoder()
    gone = torch.zeros(6, 5, dtype=torch.bool)
    gone[:, column] = True
    rows = table().mask(gone)
    cells, pooled = own(rows)
    with torch.no_grad():
        own.feature_tokenizer.missing[column] += torch.randn(64)
    others, same_pooled = own(rows)
    torch.testing.assert_close(same_pooled, pooled)
    seen = [c for c in range(5) if c != column]
    torch.testing.assert_close(others[:, seen], cells[:, seen])
    assert not torch.allclose(others[:, column], cells[:, column], atol=1e-3)
    changed = replace_cells(rows, ~gone, table(seed=1))
    assert not torch.allclose(own(changed)[0][:, column], others[:, column], atol=1e-3)


def test_a_row_without_any_cell_has_a_finite_constant_vector() -> None:
    everything = torch.ones(6, 5, dtype=torch.bool)
    cells, pooled = encoder()(table().mask(everything))
    assert cells.isfinite().all()
    torch.testing.assert_close(pooled, pooled[:1].expand_as(pooled))


def test_some_columns_are_chosen_in_every_row() -> None:
    chosen = sample_columns(table(200), 2, ExampleRNG.of(0, 0, 200))
    assert (chosen.sum(1) == 2).all()
    assert (chosen.float().mean(0) - 0.4).abs().max() < 0.1


@pytest.fixture(scope="module")
def solar_cells() -> Corpus:
    corpus = corpora.solar_cells()
    return corpus.with_splits({name: rows[:: 6 if name == "train" else 3] for name, rows in corpus.splits.items()})


def test_random_rows_follow_the_columns_of_the_training_rows(solar_cells: Corpus) -> None:
    column = TableColumn().fit([solar_cells], {})
    rows = [column.load(solar_cells, row) for row in solar_cells.rows("train").tolist()]
    drawn = column.random_rows(ExampleRNG.of(0, 0, 4000))
    own = column(rows)
    for ours, theirs in zip(drawn.numbers.T, own.numbers.T, strict=True):
        assert ks_2samp(ours, theirs).statistic < 0.03
    assert drawn.numbers[:, 1].double().unique().numel() > 100
    share = (drawn.categories == 1).float().mean(0) - (own.categories == 1).float().mean(0)
    assert share.abs().max() < 0.03
    assert column.modes == own.categories.mode(0).values.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols_take_as_many_cells_as_they_say(protocol: str) -> None:
    gone = missing_cells(protocol, 0.5, 40, [2, 0, 3, 1], np.random.default_rng(0))
    assert gone.mean() == 0.5
    if protocol == "random_values":
        assert 0 < gone[:, 0].mean() < 1
    else:
        assert set(gone.mean(0)) == {0.0, 1.0}
    expected = {"most_important": [1, 0, 1, 0], "least_important": [0, 1, 0, 1]}
    if protocol in expected:
        assert gone[0].tolist() == [bool(cell) for cell in expected[protocol]]


@pytest.fixture(scope="module")
def trained(solar_cells: Corpus, tmp_path_factory: pytest.TempPathFactory):
    recipe = tip.Recipe(batch_size=32, optimizer=OptimizerConfig(learning_rate=2e-3))
    out = tmp_path_factory.mktemp("tip") / "run"
    return train(recipe, solar_cells, Budget(steps=60), out=out, validate=validation(solar_cells))


def test_every_loss_falls_and_every_capability_answers(trained, solar_cells: Corpus) -> None:
    logged = [entry["losses"] for entry in trained.history if "losses" in entry]
    first = {name: losses[name] for losses in reversed(logged) for name in losses}
    last = {name: losses[name] for losses in logged for name in losses}
    assert set(first) == {"itc", "itm", "mtr", "classification"}
    for name in first:
        assert last[name] < first[name], name
    assert any("validation/table_to_image/R@10" in entry.get("validation", {}) for entry in trained.history)
    vectors = trained.embed(image=[solar_cells.value(0, "image")], table=[solar_cells.value(0, "attributes")])
    torch.testing.assert_close(vectors["table"].norm(dim=1), torch.ones(1))


def test_evaluation_knows_missing_cells_and_a_loaded_run_scores_the_same(
    trained, solar_cells: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other protocols differ in which cells they take.
    monkeypatch.setattr(label_classification, "PROTOCOLS", ("random_values",))
    scores = {score.name: score for score in evaluate(trained, solar_cells)}
    for way in ("linear_probe", "classify"):
        assert scores[f"test/{way}_grade/accuracy"].chance == 0.25
        whole = [scores[f"test/{way}_grade/accuracy"]]
        rates = [scores[f"test/{way}_grade/random_values_{rate}%/accuracy"] for rate in (30, 50, 70, 90)]
        area = np.trapezoid([score.value for score in whole + rates], (0, 0.3, 0.5, 0.7, 0.9)) / 0.9
        assert scores[f"test/{way}_grade/random_values/accuracy_vs_missing_rate"].value == pytest.approx(area)
    assert scores["test/linear_probe_grade/image/accuracy"].value > 0.25
    assert scores["test/imputation/mse"].value < scores["test/imputation/mse"].chance
    retrieval = scores["test/table_to_image/R@10"]
    assert retrieval.value > retrieval.chance
    examples = Labelled.of(Reader(solar_cells, trained.processor), "validation", "grade").examples
    before, after = (
        answers(run.model, run.processor, "features", columns_of(examples))
        for run in (trained, load_run(trained.directory))
    )
    for batch, again in zip(before, after, strict=True):
        for name, vectors in batch.items():
            torch.testing.assert_close(again[name], vectors)


def test_images_and_rows_are_embedded_and_words_refused(trained, solar_cells: Corpus, tmp_path: Path) -> None:
    few = dataclasses.replace(solar_cells, table=solar_cells.table.slice(0, 5))
    assert write_embeddings(trained, few, tmp_path / "vectors.parquet") == (5, {})
    assert pq.read_table(tmp_path / "vectors.parquet").column_names == ["key", "image", "table"]
    with pytest.raises(UserError, match="does not take text"):
        search_corpus(trained, solar_cells, "a crack")


def test_texts_of_the_corpus_are_not_asked_of_a_method_that_takes_none(trained, solar_cells: Corpus) -> None:
    described = dataclasses.replace(solar_cells, columns=dict(solar_cells.columns) | {"captions": Text()})
    assert available_modalities(described, trained.processor) == available_modalities(solar_cells, trained.processor)
    assert Text in available_modalities(described, processor=None)


def test_a_table_of_numbers_alone_is_filled_in_too(solar_cells: Corpus) -> None:
    kind = solar_cells.columns["attributes"]
    assert isinstance(kind, Table)
    columns = dict(solar_cells.columns) | {"attributes": Table(kind.numeric, {})}
    numbers = dataclasses.replace(solar_cells, columns=columns)
    run = train(tip.Recipe(batch_size=16), numbers, Budget(steps=3))
    scores = imputation_scores(run.model, run.processor, Reader(numbers, run.processor), "validation")
    names = [score.name.rpartition("/")[2] for score in scores]
    assert names == ["mse", "mse", "mse_reduction_by_image"]


def test_the_important_columns_are_those_that_tell_the_label() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    numbers = rng.normal(size=(200, 3))
    numbers[:, 1] = labels + 0.1 * numbers[:, 1]
    examples = [{"table": TableRow(row.astype(np.float32), np.array([0]))} for row in numbers]
    assert columns_by_importance(Labelled(examples, labels))[0] == 1


def test_a_corpus_without_labels_can_only_be_pre_trained_on(solar_cells: Corpus) -> None:
    unlabelled = dataclasses.replace(solar_cells, label=None)
    with pytest.raises(UserError, match="no label"):
        fit_processor(tip.Recipe(), unlabelled)
    recipe = tip.Recipe(finetune_fraction=0.0)
    assert not isinstance(recipe.build(fit_processor(recipe, unlabelled)), CanClassify)


def test_equal_rows_have_equal_numbers_and_missing_numbers_equal_none() -> None:
    rows = table(3)[torch.tensor([0, 1, 0, 2])]
    identity = rows.identity()
    assert identity[0] == identity[2]
    assert len(set(identity.tolist())) == 3
    rows.numbers[:, 0] = math.nan
    assert len(set(rows.identity().tolist())) == 4


def test_missing_cells_are_filled_with_mean_and_mode() -> None:
    rows = table(2)
    missing = torch.tensor([[True, False, False, True, False], [False] * 5])
    filled = rows.mask(missing).filled(torch.tensor([2, 1]))
    assert filled.numbers[0, 0] == 0
    assert filled.categories[0, 0] == 2
    assert not filled.missing.any()
    torch.testing.assert_close(filled.numbers[~missing[:, :3]], rows.numbers[~missing[:, :3]])
