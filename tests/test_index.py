"""The searchable index: what it finds, how it follows its data, what it refuses."""

from __future__ import annotations

import json

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.errors import UnreadableExample, UserError
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders import clip
from polymodal.serving import index_build, index_rows, index_table
from polymodal.serving.index import Index, embedded_query
from polymodal.serving.index_build import build_index
from polymodal.serving.search import search_corpus
from polymodal.training import train
from polymodal.types import Budget

COLORS = {"red": (200, 20, 20), "green": (20, 160, 40), "blue": (30, 40, 200), "white": (230, 230, 230)}


def image(color: tuple[int, int, int], number: int) -> bytes:
    shade = color[0], color[1] + number % 20, color[2] - number // 20
    return encoded(PILImage.new("RGB", (40, 24), shade))


def records(count: int = 80) -> list[dict]:
    names = list(COLORS)
    return [
        {
            "id": f"k{n}",
            "image": image(COLORS[names[n % 4]], n),
            "caption": f"a {names[n % 4]} plate, number {n}",
            "price": float(n),
            "shop": "north" if n % 2 else "south",
        }
        for n in range(count)
    ]


def written(folder, rows: list[dict]):
    path = folder / "plates.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plates")
    corpus = corpora.from_path(written(folder, records()))
    return train(clip.Recipe(batch_size=16), corpus, Budget(steps=2), out=folder / "run")


def test_an_index_finds_what_looking_at_everything_finds(run, tmp_path):
    corpus = corpora.from_path(written(tmp_path, records()))
    seen = []
    built = build_index(run, corpus, str(tmp_path / "index"), lambda done, total: seen.append((done, total)))
    assert (built.added, built.changed, built.removed, built.kept, built.skipped) == (80, 0, 0, 0, {})
    assert seen[-1] == (80, 80)
    opened = Index(str(tmp_path / "index"))
    assert len(opened) == 80
    again = opened.run()
    found = opened.find(embedded_query(again, "a red plate"), 7)
    exact = search_corpus(run, corpus, "a red plate", 7, "all")
    assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in exact], abs=1e-5)
    assert {hit.key for hit in found} == {hit.key for hit in exact}
    assert found[0].metadata.keys() == {"price", "shop"}
    assert found[0].caption.endswith(f"number {found[0].metadata['price']:.0f}")
    assert max(found[0].image.size) <= index_rows.THUMBNAIL
    some_row = 11
    (same, *_) = opened.find(embedded_query(again, image=corpus.raw(some_row, "image")), 3)
    assert same.key == "k11"
    assert same.similarity == pytest.approx(1, abs=1e-5)


def test_conditions_and_words(run, tmp_path):
    corpus = corpora.from_path(written(tmp_path, records()))
    build_index(run, corpus, str(tmp_path / "index"))
    opened = Index(str(tmp_path / "index"))
    query = embedded_query(opened.run(), "a plate")
    cheap = opened.find(query, 100, where="price < 10 AND shop = 'north'")
    assert sorted(hit.key for hit in cheap) == ["k1", "k3", "k5", "k7", "k9"]
    assert {hit.split for hit in opened.find(query, 100, where="split = 'test'")} == {"test"}
    assert opened.find(query, 3, words="37")[0].key == "k37"
    for wrong in ("cost < 10", "price <", "price < 'x"):
        with pytest.raises(UserError, match=r"such as .* on key, split, price, shop"):
            opened.find(query, 3, where=wrong)
    with pytest.raises(UserError, match="at least 1"):
        opened.find(query, 0)
    for nothing in ({}, {"words": "  "}, {"words": "red", "image": b"x"}):
        with pytest.raises(UserError, match="Say what to look for"):
            embedded_query(run, **nothing)
    with pytest.raises(UserError, match="no format"):
        embedded_query(run, image=b"not an image")


def test_a_search_ends_at_its_time(run, tmp_path):
    build_index(run, corpora.from_path(written(tmp_path, records())), str(tmp_path / "index"))
    opened = Index(str(tmp_path / "index"))
    query = embedded_query(run, "a plate")
    assert len(opened.find(query, 3, seconds=60)) == 3
    rows = 200_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(len(query) * rows, np.float16)), len(query))
    many = pa.table({"shop": ["a" * 400] * rows, "vector": vectors})
    opened.table = lancedb.connect(str(tmp_path / "many")).create_table("examples", many)
    slow = " OR ".join(f"shop LIKE '%{'_' * length}b%'" for length in range(30, 60))
    with pytest.raises(TimeoutError):
        opened.find(query, 3, slow, seconds=0.02)


def test_an_index_follows_its_data(run, tmp_path):
    rows = records(50)
    build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    del rows[7]
    rows[20]["caption"] = "a plate with a 'quoted' name"
    rows[21]["price"] = 1000.0
    rows += [{**records(60)[55], "id": "it's new"}]
    built = build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    assert (built.added, built.changed, built.removed, built.kept) == (1, 2, 1, 47)
    opened = Index(str(tmp_path / "index"))
    assert len(opened) == 50
    query = embedded_query(run, "a plate")
    keys = {hit.key: hit for hit in opened.find(query, 100)}
    assert "k7" not in keys
    assert keys["k21"].caption == "a plate with a 'quoted' name"
    assert keys["k22"].metadata["price"] == 1000.0
    (word,) = opened.find(query, 1, words="quoted")
    assert word.key == "k21", "words of changed captions are looked up too"
    rows.pop()
    assert build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index")).removed == 1
    nothing_new = build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    assert nothing_new[:4] == (0, 0, 0, 49)


def test_an_index_lies_at_a_url(run, tmp_path):
    corpus = corpora.from_path(written(tmp_path, records(20)))
    place = f"file://{tmp_path}/index"
    assert build_index(run, corpus, place).added == 20
    assert build_index(run, corpus, place).kept == 20
    assert len(Index(place).find(embedded_query(run, "a plate"), 5)) == 5
    with pytest.raises(UserError, match="cannot be opened"):
        Index(f"file://{tmp_path}/nothing")


def test_a_stopped_run_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(index_build, "CHUNK", 16)
    corpus = corpora.from_path(written(tmp_path, records()))

    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(run, corpus, str(tmp_path / "index"), stop)
    assert len(Index(str(tmp_path / "index"))) == 32
    built = build_index(run, corpus, str(tmp_path / "index"))
    assert (built.added, built.kept) == (48, 32)


def test_what_cannot_be_read_is_left_out_and_named(run, tmp_path):
    rows = records(30)
    rows[4]["image"] = b"no image"
    rows[9]["id"] = "k8"
    built = build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    assert built.added == 29
    assert list(built.skipped) == ["k4"]
    query = embedded_query(run, "a plate")
    assert {"k8", "k8#2"} <= {hit.key for hit in Index(str(tmp_path / "index")).find(query, 100)}


def test_what_cannot_be_read_any_more_is_taken_out(run, tmp_path):
    rows = records(12)
    build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    rows[4]["image"] = b"no image"
    built = build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    assert (built.added, built.changed, built.removed, built.kept) == (0, 0, 1, 11)
    assert list(built.skipped) == ["k4"]
    opened = Index(str(tmp_path / "index"))
    assert "k4" not in {hit.key for hit in opened.find(embedded_query(run, "a plate"), 100)}


def test_an_example_without_a_image_to_show_is_found_all_the_same(run, tmp_path, monkeypatch):
    shown = index_rows.image_of

    def some(corpus, row):
        if row % 2:
            raise UnreadableExample("there is no image")
        return shown(corpus, row)

    monkeypatch.setattr(index_rows, "image_of", some)
    build_index(run, corpora.from_path(written(tmp_path, records(20))), str(tmp_path / "index"))
    found = Index(str(tmp_path / "index")).find(embedded_query(run, "a plate"), 20)
    assert len(found) == 20
    assert sorted(int(hit.key[1:]) for hit in found if hit.image is None) == list(range(1, 20, 2))


def test_an_index_of_other_weights_or_other_data_is_refused(run, tmp_path):
    corpus = corpora.from_path(written(tmp_path, records()))
    place = str(tmp_path / "index")
    build_index(run, corpus, place)
    other = train(clip.Recipe(batch_size=16), corpus, Budget(steps=1), out=tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="made with other weights"):
        build_index(other, corpus, place)
    with pytest.raises(UserError, match="made with other weights"):
        Index(place).run(str(tmp_path / "other"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(UserError, match=r"is of other data, .*plates.parquet"):
        build_index(run, corpora.from_path(written(elsewhere, records(30))), place)
    with pytest.raises(UserError, match="is no index"):
        Index(str(tmp_path / "nothing"))


def test_approximate_search_finds_nearly_all(run, tmp_path, monkeypatch):
    monkeypatch.setattr(index_table, "ANN_FROM", 2000)
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"n{n}", "image": image(tuple(rng.integers(10, 235, 3).tolist()), 0), "caption": f"number {n}"}
        for n in range(2500)
    ]
    corpus = corpora.from_path(written(tmp_path, rows))
    build_index(run, corpus, str(tmp_path / "index"))
    opened = Index(str(tmp_path / "index"))
    assert {column for index in opened.table.list_indices() for column in index.columns} == {"text", "vector"}
    vectors = run.embed(image=corpus.raw_values(np.arange(2500), "image"))["image"].numpy()
    recalls = []
    for row in range(0, 2500, 100):
        exact = np.sort(vectors @ vectors[row])[::-1][:10]
        found = np.array([hit.similarity for hit in opened.find(vectors[row], 10)])
        recalls.append(np.mean(found >= exact[-1] - 1e-5))
    assert np.mean(recalls) > 0.95


def test_a_build_that_was_killed_before_its_text_index_goes_on(run, tmp_path, monkeypatch):
    corpus, place = corpora.from_path(written(tmp_path, records(20))), str(tmp_path / "index")

    def killed(table):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(index_build, "arrange", killed)
        with pytest.raises(SystemExit):
            build_index(run, corpus, place)
    assert build_index(run, corpus, place)[:4] == (0, 0, 0, 20)
    assert {column for index in Index(place).table.list_indices() for column in index.columns} == {"text"}


def test_the_command_line(polymodal, run, tmp_path):
    path = written(tmp_path, records(40))
    done = polymodal("index", str(run.directory), "--data", str(path), "--out", "index")
    assert done.returncode == 0, done.stderr
    assert "40 added" in done.stdout
    assert "40 as before" in polymodal("index", str(run.directory), "--data", str(path), "--out", "index").stdout
    done = polymodal("search", "index", "a red plate", "--top", "3", "--where", "shop = 'north'", "--out", "s.png")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()) == 6
    assert PILImage.open(tmp_path / "s.png").width > 300
    (tmp_path / "query.png").write_bytes(records()[5]["image"])
    found = json.loads(polymodal("search", "index", "--image", "query.png", "--json").stdout)
    assert found[0]["key"] == "k5"
    for arguments, said in (
        (("search", "index", "--audio", "query.png"), "does not take sound"),
        (("search", "index", "red", "--run", "nowhere"), "is not a run"),
        (("index", str(run.directory), "--data", str(path), "--out", "/proc/nothing"), "/proc/nothing"),
    ):
        done = polymodal(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_column_that_was_added_to_the_data_says_what_to_do(run, tmp_path):
    rows = records(60)
    build_index(run, corpora.from_path(written(tmp_path, rows)), str(tmp_path / "index"))
    more = [{**row, "season": "winter"} for row in rows]
    with pytest.raises(UserError, match="has no column season, which the data has now; remove the index and make it"):
        build_index(run, corpora.from_path(written(tmp_path, more)), str(tmp_path / "index"))
    fewer = [{name: value for name, value in row.items() if name != "price"} for row in rows]
    build_index(run, corpora.from_path(written(tmp_path, fewer)), str(tmp_path / "index"))
