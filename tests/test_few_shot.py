"""Few labels: which rows are sampled, what is counted of predictions, and columns that some examples lack."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from rich.progress import Progress
from sklearn.metrics import confusion_matrix as reference_matrix
from sklearn.metrics import f1_score

from polymodal.corpora import Corpus
from polymodal.corpora._prepared import Preparation
from polymodal.data.columns.label import LabelColumn
from polymodal.data.columns.text import LearnedTokenizer, ShuffledTextColumn
from polymodal.data.few_shot import FewShotOrder, few_shot_rows, rows_with_label
from polymodal.errors import UserError
from polymodal.evaluation.classification import confusion_matrix, macro_f1
from polymodal.evaluation.tasks.label_classification import by_class
from test_missing_labels import without_labels

SPLITS = ("train", "validation", "test", "test_openmoji")


def test_few_labels_are_balanced_nested_and_others_by_seed() -> None:
    rows, labels = np.arange(100, 160), ["a"] * 40 + ["b"] * 15 + ["c"] * 5
    few, more = (few_shot_rows(rows, labels, count, 1) for count in (9, 30))
    counts = [np.unique([labels[row - 100] for row in some], return_counts=True)[1].tolist() for some in (few, more)]
    assert counts[0] == [3, 3, 3]
    assert counts[1][2] == 5
    assert sorted(counts[1][:2]) == [12, 13]
    assert {*few} <= {*more}
    assert {*few} != {*few_shot_rows(rows, labels, 9, 2)}
    assert sorted(few_shot_rows(rows, labels, 0, 1)) == rows.tolist()
    order = FewShotOrder(rows, labels, 9, 1)
    passes = [[order[place] for place in range(start, start + 9)] for start in (0, 9)]
    assert [sorted(one) for one in passes] == [sorted(few)] * 2  # every pass has each row once
    assert passes[0] != passes[1]
    assert order[4] == passes[0][4]  # random access, back to an earlier pass
    with pytest.raises(UserError, match="less than one for each of the 3 classes"):
        few_shot_rows(rows, labels, 2, 1)


def test_a_pass_over_many_rows_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    order = FewShotOrder(np.arange(50), ["a", "b"] * 25, 0, 0)
    made, generator = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or generator(seed))
    assert len({order[place] for place in range(50)}) == 50
    assert len(made) == 1


def test_macro_f1_and_confusion_matrix_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.r_[rng.integers(0, 3, 30), 4]  # class 4 has one example, class 3 is only predicted
    predicted = np.where(rng.random(31) < 0.6, labels, rng.integers(0, 4, 31))
    score = macro_f1("", predicted, labels)
    assert score.value == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    keep = ~np.eye(31, dtype=bool)
    left_out = [f1_score(labels[one], predicted[one], average="macro", zero_division=0) for one in keep]
    expected = score.value - 30 * (np.array(left_out) - np.mean(left_out))
    np.testing.assert_allclose(score.clusters, expected)
    assert (confusion_matrix(predicted, labels, 5) == reference_matrix(labels, predicted, labels=range(5))).all()
    assert macro_f1("", np.where(predicted == 0, -1, predicted), labels).value < score.value


def test_a_row_of_the_confusion_matrix_adds_up_to_one() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 0, 1, 0])
    scores = {score.name: score for score in by_class("t", predicted, labels, ("a b", "c"))}
    cells = {name: round(score.value, 3) for name, score in scores.items() if "confusion" in name}
    assert cells == {
        "t/confusion/a_b_as_a_b": 0.667,
        "t/confusion/a_b_as_c": 0.333,
        "t/confusion/c_as_a_b": 0.5,
        "t/confusion/c_as_c": 0.5,
    }
    assert [name for name, score in scores.items() if not score.higher_is_better] == [
        "t/confusion/a_b_as_c",
        "t/confusion/c_as_a_b",
    ]


def test_a_label_may_be_missing_or_of_another_column(corpus: Corpus) -> None:
    some = without_labels(corpus, ("train",), 2)
    column = LabelColumn(may_lack=True).fit([some], {})
    loaded = [column.load(some, row) for row in some.rows("train").tolist()]
    assert [one < 0 for one in loaded] == [True, False] * 12
    assert rows_with_label(some).tolist() == some.rows("train")[1::2].tolist()
    assert LabelColumn(column="label").fit([corpus], {}).names == column.names
    assert not LabelColumn(column="lable").available([corpus])
    with pytest.raises(UserError, match="label"):
        LabelColumn(column="lable").check(corpus)


def test_shuffled_captions_are_those_of_others_and_always_the_same(corpus: Corpus) -> None:
    column = ShuffledTextColumn(LearnedTokenizer(300, 24)).fit([corpus], {})
    rows = corpus.rows("train").tolist()
    texts = [[caption.text for caption in column.load(corpus, row)] for row in rows]
    own = [[caption.text for caption in corpus.value(row, "text")] for row in rows]
    assert sorted(texts) == sorted(own)
    assert texts != own
    assert texts == [[caption.text for caption in column.load(corpus, row)] for row in rows]
    test = int(corpus.rows("test")[0])
    assert column.load(corpus, test) == corpus.value(test, "text")


def test_emoji_of_an_activity_are_tested_on_drawings_of_vendors_without_labels() -> None:
    module = importlib.import_module("polymodal.corpora.emoji_activities")
    names = ("woman running: facing right", "person tipping hand", "man cook", "cookie", "person standing", "deaf cook")
    assert [module.activity_of(name) for name in names] == ["running", "tipping hand", "cook", None, None, None]
    rows = list(module._rows(Preparation("emoji_activities", Progress(disable=True))))
    labelled = {split: [row for row in rows if row["split"] == split and row["activity"]] for split in SPLITS}
    vendors = {split: {row["vendor"] for row in some} for split, some in labelled.items()}
    assert vendors == dict(zip(SPLITS, ({"google"}, {"twitter"}, {"fluent"}, {"openmoji"}), strict=True))
    for split, some in labelled.items():
        assert {row["activity"] for row in some} <= {row["activity"] for row in labelled["train"]}
        if split != "train":  # test units are independent
            assert len({row["group"] for row in some}) == len(some) > 45
    groups = {row["group"] for row in rows if row["activity"]}
    for row in rows:
        if row["split"] == "train" and not row["activity"]:
            assert row["group"] not in groups
            assert row["vendor"] != "openmoji"
