"""Users' questions, answers and labelled pairs, and the release of SODD: what is read, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polymodal.corpora import from_path
from polymodal.corpora.formats.posts import text_and_code
from polymodal.data.columns.text import LearnedTokenizer
from polymodal.data.columns.thread import ThreadColumn
from polymodal.errors import UserError

POSTS = [
    {"id": f"q{n}", "question_text": f"How do I read file {n}?", "question_code": f"open({n})" if n % 3 else "",
     "answer_text": f"Use a path {n}", "answer_code": f"Path({n}).read_text()"}
    for n in range(40)
]  # fmt: skip
PAIRS = ["first,second,label", *(f"q{n},q{n + 1},duplicate" for n in range(0, 30, 3))]
PAIRS += [f"q{n + 1},q{n + 2},0" for n in range(0, 30, 3)] + ["q0,q39,different", "q3,q30,similar_text", "q5,nobody,3"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(folder: Path, pairs: list[str] = PAIRS) -> Path:
    (folder / "posts.jsonl").write_text("\n".join(map(json.dumps, POSTS)))
    (folder / "pairs.csv").write_text("\n".join(pairs))
    return folder


def test_posts_and_pairs(tmp_path):
    corpus = from_path(written(tmp_path))
    assert corpus.format == "posts"
    thread = corpus[0]["thread"]
    assert (thread.question_text, thread.answer_code) == ("How do I read file 0?", "Path(0).read_text()")
    assert {(link.key, link.label) for link in thread.links} == {("q1", 0), ("q39", 3)}
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "q5, nobody")]
    column = ThreadColumn(LearnedTokenizer(300, 32)).fit([corpus], {})
    split_of = {int(row): split for split, rows in corpus.splits.items() for row in rows}
    assert set(split_of.values()) == {"train", "validation", "test"}
    for start in range(0, 30, 3):  # q0 ~ q1 and q1 ~ q2: duplicates are transitive
        assert len({split_of[start + n] for n in range(3)}) == 1
        assert len({column.load(corpus, start + n).cluster for n in range(3)}) == 1
    linked = {row: {link.row for link in column.load(corpus, row).linked} for row in range(40)}
    for row in corpus.rows("train").tolist():  # no post of another split is trained on
        assert {split_of[other] for other in linked[row]} <= {"train"}
    assert all(split_of[n] == "train" or linked[n] >= {n + 1} for n in range(0, 30, 3))
    assert 39 in linked[0] or (split_of[0] == "train" and split_of[39] != "train")


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["first,secnd,label", "q0,q1,0"], "has no column 'second'; a table of pairs has first, second and label"),
        (["first,second,label", "q0,q1,same"], "has the label 'same'; labels are duplicate, similar_text"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(pairs, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as error:
        from_path(written(tmp_path, pairs))
    assert "\n" not in str(error.value)


def test_ids_name_one_post_each(tmp_path):
    (tmp_path / "posts.csv").write_text("id,question_text\n1,a\n1,b\n")
    with pytest.raises(UserError, match="several posts with one id"):
        from_path(tmp_path / "posts.csv")


def test_posts_in_html_and_ids_as_floats(tmp_path):
    html = '"<p>Is <b>x</b> &lt; y?</p>\n<pre><code>x = 1\ny &lt; 2</code></pre>"'
    rows = ["id,question_text,question_code", f"1,{html},", f"2,{html},own()", "3,Is <p>x</p> HTML?,", "4,<p>a and b,"]
    (tmp_path / "posts.csv").write_text("\n".join(rows))
    (tmp_path / "pairs.csv").write_text("first,second,label\n1.0,2.0,0.0\n3.0,4.0,3.0")
    corpus = from_path(tmp_path)
    assert [corpus.value(row, "thread").post for row in range(4)] == [
        ("Is x < y?", "x = 1\ny < 2"), ("Is x < y?", "own()"), ("Is <p>x</p> HTML?", ""), ("<p>a and b", ""),
    ]  # fmt: skip
    assert [corpus.value(row, "thread").links for row in (0, 2)] == [(("2", 0),), (("4", 3),)]
    assert not corpus.skipped


def test_a_linked_post_without_a_question_does_not_remove_those_that_name_it(tmp_path):
    (tmp_path / "posts.csv").write_text("id,question_text,answer_text\n1,a,b\n2,,b\n3,c,\n")
    (tmp_path / "pairs.csv").write_text("first,second,label\n1,2,0\n1,3,3\n")
    corpus = from_path(tmp_path)
    corpus = replace(corpus, splits={"train": np.arange(3)})
    column = ThreadColumn(LearnedTokenizer(300, 32)).fit([corpus], {})
    assert [(link.row, link.label) for link in column.load(corpus, 0).linked] == [(2, 3)]


def test_the_release_of_sodd(tmp_path):
    html = "<p>How to <b>sort</b>?</p><pre><code>x = 1\ny &lt; 2</code></pre><p>Thanks.</p>"
    assert text_and_code(html) == ("How to sort?\nThanks.", "x = 1\ny < 2")
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        rows = [
            {"first_post": f"{html}{split}{n}", "second_post": f"<p>other {n % 2}</p>", "label": n % 5}
            for n in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"SODD_{split}.parquet.gzip", compression="gzip")
    corpus = from_path(tmp_path)
    assert corpus.format == "posts"
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 7, "validation": 4, "test": 4}
    assert corpus.value(0, "thread").post == ("How to sort?\nThanks.\ndev0", "x = 1\ny < 2")
    assert sum(one.count for one in corpus.skipped) == 1  # the pair with an accepted answer
