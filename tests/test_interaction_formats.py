"""Interactions of users with items: order, duplicates, likes and catalogues, in the forms that data sets come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from format_samples import COUNT, SAMPLES
from polymodal.corpora import Corpus, from_path
from polymodal.errors import UserError
from polymodal.modalities import History
from polymodal.modalities.history import Item


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def titles(corpus: Corpus, row: int = 0) -> list[str]:
    history = corpus.columns["liked"]
    assert isinstance(history, History)
    return [history.catalogue[item].title for item in corpus.value(row, "liked")]


def test_movielens_with_titles_oldest_first(tmp_path):
    corpus = from_path(SAMPLES["interactions"](tmp_path))
    assert len(corpus) == COUNT
    row = corpus.table.column("user").to_pylist().index("0")
    assert titles(corpus, row) == [f"Film, the {film}th (1999)" for film in (5, 4, 3, 2, 1, 0)]
    history = corpus.columns["liked"]
    assert isinstance(history, History)
    film = next(item for item in history.catalogue if item.title.startswith("Film, the 3th"))
    assert film == Item("Film, the 3th (1999)", "Film, the 3th Drama Comedy", (), ("Drama", "Comedy"))


def expected(rows: list[tuple[str, str, float, int]]) -> dict[str, list[str]]:
    """Liked items of each user by a plain loop."""
    liked: dict[str, list[str]] = {}
    for user, item, rating, _ in sorted(rows, key=lambda row: row[3]):
        if rating >= 4 and item not in liked.setdefault(user, []):
            liked[user].append(item)
    return {user: items for user, items in liked.items() if len(items) >= 5}


ROWS = [(f"u{n % 6}", f"i{n * 7 % 11}", float(1 + n * 3 % 5), 5000 - 37 * n % 701) for n in range(200)]


@pytest.mark.parametrize("form", ["u.data", "ratings.dat", "x.inter", "reviews.jsonl", "log.csv", "dates.csv"])
def test_each_form_gives_what_a_plain_loop_gives(form, tmp_path):
    order = sorted(ROWS, key=lambda row: row[3])
    if form in ("u.data", "ratings.dat"):
        lines = [("\t" if form == "u.data" else "::").join(map(str, row)) for row in ROWS]
    elif form == "reviews.jsonl":
        names = ("user_id", "parent_asin", "rating", "timestamp")
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    elif form == "dates.csv":
        lines = ["user,item,rating,date"]
        lines += [f"{user},{item},{rating},2020-01-01T00:{order.index((user, item, rating, time)):04d}"
                  for user, item, rating, time in ROWS]  # fmt: skip
    else:
        headings = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
        lines = [headings, *("\t".join(map(str, row)) for row in ROWS)]
        if form == "log.csv":
            lines = [line.replace("\t", ",").replace(":token", "").replace(":float", "") for line in lines]
    (tmp_path / form).write_text("\n".join(lines))
    corpus = from_path(tmp_path / form)
    found = {corpus.key(row): titles(corpus, row) for row in range(len(corpus))}
    assert found == expected(ROWS)


def test_movielens_100k_has_genres_and_old_letters(tmp_path):
    lines = [f"{user}\t{item}\t5\t{item}" for user in range(4) for item in range(1, 7)]
    (tmp_path / "u.data").write_text("\n".join(lines))
    (tmp_path / "u.genre").write_text("unknown|0\nAction|1\nDrama|2\n\n")
    films = [f"{n}|Café {n} (1995)|01-Jan-1995||http://x|0|1|{n % 2}" for n in range(1, 7)]
    (tmp_path / "u.item").write_bytes("\n".join(films).encode("latin-1"))
    corpus = from_path(tmp_path)
    history = corpus.columns["liked"]
    assert isinstance(history, History)
    assert history.catalogue[0] == Item("Café 1 (1995)", "Café 1 Action Drama", (), ("Action", "Drama"))


def test_counts_are_no_ratings_and_users_with_few_items_are_counted(tmp_path):
    lines = [f"a,{n},{1 + 40 * n},{n}" for n in range(6)] + ["b,1,500,1"]
    (tmp_path / "plays.csv").write_text("\n".join(["user,item,playcount,time", *lines]))
    corpus = from_path(tmp_path / "plays.csv")
    assert titles(corpus) == [str(n) for n in range(6)]
    assert [(one.count, one.example) for one in corpus.skipped] == [(1, "b")]


def test_too_few_interactions_are_a_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("user,item,rating,time\n")
    with pytest.raises(UserError, match=r"a\.csv has no rows"):
        from_path(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("user,item,rating,time\n1,2,5,3\n")
    with pytest.raises(UserError, match="no user with 5 items or more"):
        from_path(tmp_path / "a.csv")


def test_a_table_with_an_image_is_no_list_of_interactions(tmp_path):
    folder: Path = tmp_path
    (folder / "a.csv").write_text("user_id,caption\n1,a\n")
    with pytest.raises(UserError):
        from_path(folder / "a.csv", format="interactions")


def test_a_time_that_is_missing_leaves_the_order_of_the_others(tmp_path):
    times = ["", "978300760", "1100000000", "900000000", "1000000001", "999999999"]
    lines = [f"u{user},i{item},5,{time}" for user in range(3) for item, time in enumerate(times)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item,rating,timestamp", *lines]))
    assert titles(from_path(tmp_path / "ratings.csv")) == ["i0", "i3", "i1", "i5", "i4", "i2"]


def test_dates_that_do_not_sort_by_time_are_a_sentence(tmp_path):
    dates = ["12/31/2018", "01/02/2020", "03/04/2019", "11/11/2017", "02/02/2021"]
    lines = [f"u{user},i{item},5,{date}" for user in range(3) for item, date in enumerate(dates)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user,item,rating,date", *lines]))
    with pytest.raises(UserError, match="'date' has '12/31/2018', which does not sort by time"):
        from_path(tmp_path / "ratings.csv")


def test_several_files_of_interactions_are_named(tmp_path):
    for name in ("ratings.csv", "ratings_of_may.csv"):
        lines = [f"u{user},i{item},5,{item}" for user in range(3) for item in range(6)]
        (tmp_path / name).write_text("\n".join(["user,item,rating,time", *lines]))
    assert "The interactions of 2 files are read as one: ratings.csv, ratings_of_may.csv." in from_path(tmp_path).notes


def test_genres_of_recbole_are_words(tmp_path):
    lines = [f"u{user}\ti{item}\t5" for user in range(3) for item in range(6)]
    (tmp_path / "ml.inter").write_text("\n".join(["user_id:token\titem_id:token\trating:float", *lines]))
    films = [f"i{item}\tFilm {item}\tAction Sci-Fi" for item in range(6)]
    (tmp_path / "ml.item").write_text("\n".join(["item_id:token\tmovie_title:token_seq\tclass:token_seq", *films]))
    history = from_path(tmp_path).columns["liked"]
    assert isinstance(history, History)
    assert {item.labels for item in history.catalogue} == {("Action", "Sci-Fi")}


def test_only_the_keys_of_a_record_are_its_headings(tmp_path):
    rows = [{"user_id": f"u{user}", "asin": f"i{item}", "rating": 5} for user in range(3) for item in range(6)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = [{"asin": f"i{item}", "title": f"Soap {item}", "details": {"user": "adults"}} for item in range(6)]
    (tmp_path / "meta.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert titles(from_path(tmp_path))[0] == "Soap 0"


def test_a_sample_of_a_table_is_left_out_and_named(tmp_path):
    # Kaggle's "The Movies Dataset" has both, with other numbers for the same users.
    def ratings(users):
        return "\n".join(["userId,movieId,rating,timestamp", *(f"{u},{i},5.0,{i}" for u in users for i in range(6))])

    (tmp_path / "ratings.csv").write_text(ratings(range(8)))
    (tmp_path / "ratings_small.csv").write_text(ratings(range(3)))
    corpus = from_path(tmp_path)
    assert len(corpus.table) == 8
    assert any("Left out as samples of the tables beside them: ratings_small.csv" in note for note in corpus.notes)
    assert len(from_path(tmp_path / "ratings_small.csv").table) == 3
    assert len(from_path([tmp_path / "ratings_small.csv", tmp_path / "ratings.csv"]).table) == 8
    (tmp_path / "ratings.csv").unlink()
    assert len(from_path(tmp_path).table) == 3
