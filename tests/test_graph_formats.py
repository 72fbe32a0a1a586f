"""Triples and lists of edges as the graphs of their nodes."""

from __future__ import annotations

import pytest

from format_samples import SAMPLES
from polymodal.corpora import from_path
from polymodal.corpora.formats import graph
from polymodal.corpora.formats._data_files import DataFiles, Match
from polymodal.errors import UserError
from polymodal.modalities.graph import Edge


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def edges(path) -> dict[str, set[tuple[str, str, str]]]:
    corpus = from_path(path)
    found = {}
    for row in range(len(corpus)):
        value = corpus.value(row, "graph")
        assert value.nodes[0] == corpus.key(row)
        found[corpus.key(row)] = {
            (value.nodes[edge.source], edge.relation, value.nodes[edge.target]) for edge in value.edges
        }
    return found


def test_triples_have_texts_and_the_splits_of_their_files(tmp_path):
    corpus = from_path(SAMPLES["graph"](tmp_path))
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 11, "validation": 4, "test": 4}
    row = next(int(row) for row in corpus.rows("train") if corpus.key(int(row)) == "/m/d0")
    value = corpus.value(row, "graph")
    assert value.nodes == ("Director 0", "Film 0", "Film 3", "Film 6")
    assert value.edges == tuple(Edge(film, 0, "/film/directed_by") for film in (1, 2, 3))
    assert corpus.value(row, "text")[0].text == "Director 0"


@pytest.mark.parametrize(
    ("name", "text", "relation"),
    [
        ("a.txt", "# FromNodeId\tToNodeId\n0\t1\n1\t2\n2\t2\n", ""),
        ("a.edgelist", "0 1 0.5\n1 2 1.5\n2 2 1\n", ""),
        ("a.csv", "source,target,weight\n0,1,3\n1,2,4\n2,2,5\n", ""),
        ("a.csv", 'head,relation,tail\n0,"likes",1\n1,likes,2\n2,likes,2\n', "likes"),
        ("triples.tsv", "0\tlikes\t1\n1\tlikes\t2\n2\tlikes\t2\n", "likes"),
        ("a.tsv", "subject\tobject\tpredicate\n0\t1\tlikes\n1\t2\tlikes\n2\t2\tlikes\n", "likes"),
    ],
)
def test_each_form_gives_its_edges(name, text, relation, tmp_path):
    (tmp_path / name).write_text(text)
    one, two, three = ("0", relation, "1"), ("1", relation, "2"), ("2", relation, "2")
    assert edges(tmp_path / name) == {"0": {one}, "1": {one, two}, "2": {two, three}}


def test_nodes_of_many_edges_are_cut_and_lines_that_are_none_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "MAX_EDGES", 5)
    lines = [f"0\t{n}\n" for n in range(1, 40)] + ["7\n"]
    (tmp_path / "a.edges").write_text("".join(lines))
    corpus = from_path(tmp_path / "a.edges")
    assert len(corpus.value(0, "graph").edges) == 5
    assert [(one.count, one.reason) for one in corpus.skipped] == [(1, "is no edge")]
    (tmp_path / "b.edges").write_text("".join(lines[:30] + ["7\n"] * 20))
    with pytest.raises(UserError, match="20 of 50 lines are no edges"):
        from_path(tmp_path / "b.edges")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "source,target\n" + "a long sentence of more words than any node of a graph has here,x\n" * 12),
        ("train.txt", "".join(f"{n}.jpg\ta thing\t{n}\n" for n in range(12))),
        ("test.txt", "".join(f"id{n}\tthe text {n}\tgood\n" for n in range(12))),
        ("notes.txt", "some\twords\tof mine\n"),
        ("numbers.tsv", "label\tvalue\na\t2\nb\t3\n"),
    ],
)
def test_what_is_no_graph_is_not_taken_for_one(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert graph.matches(DataFiles.of([tmp_path / name])) is Match.NO


def test_commas_in_quotation_marks_are_part_of_a_name(tmp_path):
    file = tmp_path / "kg.csv"
    rows = [f'"Paris, {state}",in,"United States, the"' for state in ("Texas", "Ohio")]
    file.write_text("\n".join(["head,relation,tail", *rows]))
    assert edges(file)["United States, the"] == {
        (f"Paris, {state}", "in", "United States, the") for state in ("Texas", "Ohio")
    }


@pytest.mark.parametrize(
    "lines",
    [
        ["image,text,from,to", *(f"{n}.png,thing {n},flickr,web" for n in range(12))],
        ["source,target", *(f"a small cat {n},ein Kater {n}" for n in range(12))],
    ],
)
def test_images_and_pairs_of_sentences_are_no_graph(lines, tmp_path):
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert graph.matches(DataFiles.of([tmp_path])) == Match.NO
