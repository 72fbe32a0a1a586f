"""Examples without a label: they are left out of what is scored by labels, and of nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

import polymodal as pm
from polymodal.corpora import Corpus
from polymodal.evaluation.evaluate import evaluate, inputs_of
from polymodal.evaluation.tasks import attentive_probe, cross_modal_retrieval, label_classification
from polymodal.recipes.captioning import aimv2
from polymodal.training.run import Run
from polymodal.training.trainer import train


def without_labels(corpus: Corpus, splits: tuple[str, ...], every: int) -> Corpus:
    """The corpus without the label of every so many rows of these splits."""
    assert corpus.label is not None
    values = corpus.table.column(corpus.label).to_pylist()
    for split in splits:
        for row in corpus.splits[split][::every]:
            values[row] = None
    place, kind = corpus.table.column_names.index(corpus.label), corpus.table.schema.field(corpus.label)
    table = corpus.table.set_column(place, kind, pa.array(values, kind.type))
    return dataclasses.replace(corpus, table=table)


@pytest.fixture(scope="module")
def run(corpus: Corpus) -> Run:
    return train(aimv2.Recipe.tiny(), corpus, pm.Budget(steps=2))


def test_examples_without_a_label_are_left_out_of_its_scores(run: Run, corpus: Corpus) -> None:
    some = without_labels(corpus, ("train", "validation", "test"), 3)
    whole, part = ({score.name: score for score in evaluate(run, one)} for one in (corpus, some))
    assert whole.keys() == part.keys()
    of_label = [name for name in whole if f"probe_{corpus.label}" in name or f"zero_shot_{corpus.label}" in name]
    assert {name.split("/")[1].split("_")[0] for name in of_label} == {"attentive", "linear", "zero"}
    for name in whole.keys() - {*of_label}:
        np.testing.assert_array_equal(whole[name].clusters, part[name].clusters)


def test_a_split_without_any_label_has_no_scores_of_it(run: Run, corpus: Corpus) -> None:
    none = without_labels(corpus, ("test",), 1)
    names = {score.name for score in evaluate(run, none)}
    assert names
    assert not [name for name in names if f"_{corpus.label}" in name]
    for task in (attentive_probe, cross_modal_retrieval, label_classification):
        assert task.plot(inputs_of(run, none)).rows


def test_test_images_are_probed_some_at_a_time(run: Run, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attentive_probe.attentive_probe_scores(inputs_of(run, corpus))
    encode, asked = run.model.patch_features, []
    monkeypatch.setattr(run.model, "patch_features", lambda batch: asked.append(len(batch["image"])) or encode(batch))
    monkeypatch.setattr(attentive_probe, "ENCODED_TOGETHER", 3)
    parts = attentive_probe.attentive_probe_scores(inputs_of(run, corpus))
    assert asked[-3:] == [3, 3, 2]
    assert [score.name for score in parts] == [score.name for score in whole]
    assert all(len(part.clusters) == len(score.clusters) for part, score in zip(parts, whole, strict=True))
