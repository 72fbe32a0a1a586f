"""Splits of users' data: nothing leaks, and a row stays where it is when the data around it change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from format_samples import png
from polymodal.corpora import Corpus, from_path
from polymodal.errors import UserError
from polymodal.modalities.image import encoded


def image(number: int) -> bytes:
    return encoded(PILImage.new("RGB", (8, 8), (number % 256, number // 256, 7)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def rows(count: int) -> list[dict]:
    return [{"image": image(number), "caption": f"thing {number}"} for number in range(count)]


def opened(folder: Path, rows: list[dict]) -> Corpus:
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return from_path(folder / "pairs.parquet")


def captions(corpus: Corpus, split: str) -> set[str]:
    return {corpus.raw(row, "caption") for row in corpus.rows(split).tolist()}


def test_splits_have_a_fifth_and_a_tenth(tmp_path):
    corpus = opened(tmp_path, rows(2000))
    assert len(corpus.rows("test")) / 2000 == pytest.approx(0.2, abs=0.03)
    assert len(corpus.rows("validation")) / 2000 == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    "changed",
    [
        lambda rows: [{"image": image(9999), "caption": "a new one"}, *rows],
        lambda rows: rows[1:],
        lambda rows: sorted(rows, key=lambda row: row["caption"], reverse=True),
        lambda rows: rows + [{"image": image(5000 + n), "caption": f"appended {n}"} for n in range(50)],
    ],
    ids=["one in front", "first removed", "sorted anew", "appended"],
)
@pytest.mark.parametrize("key", ["", "id"])
def test_no_row_that_was_trained_on_becomes_a_test_row(changed, key, tmp_path):
    before = rows(200)
    after = changed(before)
    if key:
        ids = {row["caption"]: f"n{number}" for number, row in enumerate(before + after)}
        before, after = ([{"id": ids[row["caption"]], **row} for row in some] for some in (before, after))
    first, second = opened(tmp_path, before), opened(tmp_path, after)
    for split in ("train", "validation", "test"):
        kept = captions(first, split) & {row["caption"] for row in after}
        assert kept <= captions(second, split)


def test_equal_images_captions_and_groups_are_in_one_split(tmp_path):
    some = [{**row, "group": None} for row in rows(300)]
    for number in range(0, 300, 10):
        some[number + 1]["caption"] = f"  THING   {number}\t"  # one normal form
        some[number + 3]["image"] = some[number + 2]["image"]
        some[number + 4]["group"] = some[number + 5]["group"] = f"series {number}"
    corpus = opened(tmp_path, some)
    split = np.empty(300, object)
    for name, of in corpus.splits.items():
        split[of] = name
    for number in range(0, 300, 10):
        assert split[number] == split[number + 1]
        assert split[number + 2] == split[number + 3]
        assert split[number + 4] == split[number + 5]


def test_equal_files_under_other_names_are_one_image(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(image(number // 2))
        (tmp_path / f"{number}.txt").write_text(f"number {number}")
    corpus = from_path(tmp_path)
    split = np.empty(40, object)
    for name, of in corpus.splits.items():
        split[of] = name
    names = {corpus.key(row): split[row] for row in range(40)}
    assert all(names[f"{number}.png"] == names[f"{number + 1}.png"] for number in range(0, 40, 2))


def test_blank_captions_join_nothing(tmp_path):
    corpus = opened(tmp_path, [{"image": image(n), "caption": [f"thing {n}", ""]} for n in range(40)])
    assert all(len(rows) for rows in corpus.splits.values())


@pytest.mark.parametrize(("captions_of_all", "largest"), [(8, 0.25), (4, 0.25), (30, 0.25)])
def test_few_captions_of_many_rows_are_split_near_the_fractions(captions_of_all, largest, tmp_path):
    corpus = opened(tmp_path, [{"image": image(n), "caption": f"kind {n % captions_of_all}"} for n in range(400)])
    sizes = {split: len(rows) for split, rows in corpus.splits.items()}
    assert 0 < sizes["validation"] <= sizes["test"] <= largest * 400
    assert len(captions(corpus, "train") & captions(corpus, "test")) == 0


@pytest.mark.parametrize("few", [3, 5, 12])
def test_a_small_data_set_has_all_splits(few, tmp_path):
    corpus = opened(tmp_path, rows(few))
    assert all(len(rows) for rows in corpus.splits.values())
    assert sorted(np.concatenate(list(corpus.splits.values())).tolist()) == list(range(few))


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "dev", "TEST"), ("train", "valid", "testing")]
)
def test_usual_spellings_of_splits_are_one(names, tmp_path):
    corpus = opened(tmp_path, [{**row, "split": names[n % 3]} for n, row in enumerate(rows(30))])
    assert [len(corpus.rows(split)) for split in ("train", "validation", "test")] == [10, 10, 10]


def test_a_split_column_without_train_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="'split' has 'a', 'b' but no 'train'; write train"):
        opened(tmp_path, [{**row, "split": "ab"[n % 2]} for n, row in enumerate(rows(30))])


def test_files_state_splits(tmp_path):
    pq.write_table(pa.Table.from_pylist(rows(20)), tmp_path / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows(25)[20:]), tmp_path / "val-00000-of-00001.parquet")
    corpus = from_path(tmp_path)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 20, "validation": 5}


def test_two_groups_leave_no_split_empty(tmp_path):
    corpus = opened(tmp_path, [row | {"group": "ab"[number % 2]} for number, row in enumerate(rows(40))])
    assert all(len(corpus.rows(split)) for split in ("train", "validation", "test"))
    assert "There are fewer than three groups, so rows of one group are in several splits." in corpus.notes


def test_rows_without_an_image_are_no_group_and_are_in_every_split(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    rows = [{"image": "" if n % 2 else f"{n}.png", "caption": f"thing {n}"} for n in range(400) if n % 2 or n < 200]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = from_path(tmp_path / "mixed.jsonl")
    without = {split: sum(not rows[row]["image"] for row in members) for split, members in corpus.splits.items()}
    assert without["test"] > 20, without
    assert without["validation"] > 8, without
    assert not any("Few captions" in note for note in corpus.notes)
