"""`polymodal data`: what is found in the user's data, which recipes train on it, and what leaks."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import synthetic
from polymodal import recipes
from polymodal.corpora import formats, from_path, from_table
from polymodal.corpora.data_report import report_on
from polymodal.corpora.leaks import find_leaks
from polymodal.data.processor import fit_processor
from polymodal.errors import UserError
from polymodal.evaluation.evaluate import evaluate
from polymodal.evaluation.trained_rows import warn_of_trained_rows
from polymodal.modalities import Image, Text
from polymodal.recipes.suitability import family_for, what_recipes_lack
from polymodal.training import load_run, train
from polymodal.types import Budget


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


def photo(number: int, size: tuple[int, int] = (48, 32)) -> PILImage.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).resize(size, PILImage.Resampling.BICUBIC)


def encoded(image: PILImage.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def pairs(folder: Path, numbers: list[int], name: str = "pairs.parquet") -> Path:
    """Rows with an id, an image and a caption, by number."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"id-{n}", "image": encoded(photo(n)), "caption": f"thing number {n}"} for n in numbers]
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return folder / name


def image_folder(folder: Path, count: int = 20) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        photo(number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"thing number {number}")
    (folder / "07.txt").unlink()
    return folder


# The command


def test_the_report_says_what_was_found(polymodal, tmp_path):
    image_folder(tmp_path / "photos")
    done = polymodal("data", "photos")
    assert done.returncode == 0, done.stderr
    for expected in (
        "photos: 20 rows, format imagefolder",
        "48 x 32 px",
        "thing number 0 |",
        "1 left out: has no text file beside it (photos/07.png)",
        "train 1",
        "by a hash of the column 'image'",
        "no leaks found",
        "dgvae: history",
        "Contact sheet: photos.png",
    ):
        assert expected in done.stdout, done.stdout
    assert PILImage.open(tmp_path / "photos.png").size[0] > 100
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(path.suffix for path in (tmp_path / "photos").iterdir()) == [".png"] * 20 + [".txt"] * 19


def test_the_report_for_scripts(polymodal, tmp_path):
    image_folder(tmp_path / "photos")
    record = json.loads(polymodal("data", "photos", "--json").stdout)
    assert {"format", "rows", "columns", "splits", "skipped", "notes", "recipes"} <= {*record}
    assert (record["format"], record["rows"], record["skipped"][0]["count"]) == ("imagefolder", 20, 1)
    assert record["columns"]["text"]["modality"] == "text"
    assert len(record["columns"]["text"]["examples"]) == 3
    assert sum(record["splits"]["rows"].values()) == 20
    assert record["recipes"]["clip"] == {"trains": True, "lacks": []}
    assert record["recipes"]["mslam"] == {"trains": False, "lacks": ["audio"]}
    assert not (tmp_path / "photos.png").exists()


def test_shards_that_are_streamed_are_reported_too(polymodal, tmp_path):
    pairs(tmp_path / "shards", list(range(30)))
    done = polymodal("data", "shards", "--stream")
    assert done.returncode == 0, done.stderr
    assert "shards: 30 rows, format streamed shards" in done.stdout
    assert "train 24, validation 3, test 3" in done.stdout
    assert "not looked for in shards that are streamed" in done.stdout
    assert "no leaks found" not in done.stdout
    assert (tmp_path / "shards.png").exists()


def test_a_narrow_terminal(polymodal, tmp_path):
    image_folder(tmp_path / "photos")
    lines = polymodal("data", "photos", COLUMNS="60").stdout.splitlines()
    assert max(map(len, lines)) <= 60


def test_many_columns(polymodal, tmp_path):
    (tmp_path / "wide").mkdir()
    heads = ["caption", *(f"measurement_{number}" for number in range(60))]
    lines = [",".join(heads)] + [",".join([f"thing {row}"] + ["0.5"] * 60) for row in range(20)]
    (tmp_path / "wide" / "wide.csv").write_text("\n".join(lines))
    done = polymodal("data", "wide/wide.csv")
    assert "52 more without a modality: measurement_8, " in done.stdout
    assert (
        len(json.loads(polymodal("data", "wide/wide.csv", "--json").stdout)["columns"]) == 1 + 60 + 1
    )  # and the series that the numbers are


@pytest.mark.parametrize(
    ("content", "shown", "error"),
    [
        ("a,b\n1,2\n3,4\n", "a       - (string)    100%  1 | 3", "No column has image bytes"),
        ("image,text\nx/a.png,cat\nx/b.png,dog\n", "image   image", "2 of 2 values of 'image' cannot be decoded"),
        ("caption,split\na,fold1\nb,fold2\n", "fold1 | fold2", "has 'fold1', 'fold2' but no 'train'"),
    ],
)
def test_the_status_is_2_after_the_report_where_nothing_trains(polymodal, tmp_path, content, shown, error):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.csv").write_text(content)
    done = polymodal("data", "own/own.csv")
    assert done.returncode == 2
    assert shown in done.stdout
    assert error in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "shows what was found" not in done.stderr
    assert polymodal("data", "own/own.csv", "--json").returncode == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Usage: polymodal data PATH"),
        (["none"], "There is no file or folder none"),
        (["emoji"], "polymodal corpora show emoji"),
        (["photos", "--format", "imagefoldr"], "did you mean 'imagefolder'"),
        (["photos", "--image-column", "imgae"], "did you mean 'image'"),
        (["photos", "--out", "photos/sheet.png"], "beside your data"),
        (["photos", "--out", "mine.png"], "mine.png is there already"),
        (["photos", "--max-images", "0"], "at least 1"),
    ],
)
def test_typing_errors_are_a_sentence(polymodal, tmp_path, words, expected):
    image_folder(tmp_path / "photos")
    (tmp_path / "mine.png").write_bytes(b"mine")
    done = polymodal("data", *words)
    assert done.returncode == 2
    assert expected in done.stderr
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_files_at_urls_that_cannot_be_used_are_shown_like_those_here(polymodal, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.csv").write_text("a,b\n1,2\n3,4\n")
    done = polymodal("data", f"file://{tmp_path}/own/own.csv")
    assert done.returncode == 2
    assert "a       - (string)    100%  1 | 3" in done.stdout
    assert "No column has image bytes" in done.stderr


def test_nothing_is_written_beside_a_folder_in_the_layout_of_the_hub(polymodal, tmp_path):
    pairs(tmp_path / "hub", [*range(20)], "train.parquet")
    done = polymodal("data", f"hf:{tmp_path}/hub", "--out", "hub/sheet.png")
    assert done.returncode == 2
    assert "beside your data" in done.stderr
    done = polymodal("data", "hf:hub", "--json")
    assert json.loads(done.stdout)["rows"] == 20
    assert [file.name for file in (tmp_path / "hub").iterdir()] == ["train.parquet"]


def test_the_contact_sheet_replaces_only_contact_sheets(polymodal, tmp_path):
    image_folder(tmp_path / "photos")
    (tmp_path / "photos.png").write_bytes(b"mine")
    assert "photos.png is there already" in polymodal("data", "photos").stdout
    assert (tmp_path / "photos.png").read_bytes() == b"mine"
    assert "sheet.png\n" in polymodal("data", "photos", "--out", "sheet.png").stdout
    assert "sheet.png (written anew)" in polymodal("data", "photos", "--out", "sheet.png").stdout
    (tmp_path / "own.csv").write_text("caption\none\ntwo\nthree\n")
    assert "this folder holds the data" in polymodal("data", "own.csv").stdout
    assert not (tmp_path / "own.png").exists()


def test_help_describes_every_format(polymodal):
    text = polymodal("data", "--help").stdout
    for name in formats.names():
        assert f"  {name} " in text
        assert " ".join(formats.module(name).description.split()[:3]) in " ".join(text.split())


# Recipes


def test_recipes_that_fit_are_those_whose_processor_is_fitted(tmp_path):
    whole = synthetic.corpus(tmp_path / "whole")
    lacks = {name: what for name, what in what_recipes_lack(whole, {}).items() if what}
    assert [*lacks] == ["activity_clip", "clippings", "hybrid_captions", "m3p"]
    assert "no training row has captions in 'en' and in another language" in lacks["m3p"][0]
    assert lacks["hybrid_captions"] == ("captions of the format ssc",)
    assert "with text have a label, which pre-training would show" in lacks["activity_clip"][0]
    assert "4 classes with 3 rows each are less than one batch" in lacks["clippings"][0]
    alone = from_path(pairs(tmp_path / "own", list(range(30))))
    for name, what in what_recipes_lack(alone, {}).items():
        recipe = recipes.find(name).tiny()
        if what:
            with pytest.raises(UserError):
                fit_processor(recipe, alone)
        else:
            fit_processor(recipe, alone)


def test_a_recipe_that_cannot_be_imported_breaks_no_list(tmp_path, monkeypatch):
    corpus = from_path(pairs(tmp_path / "own", list(range(12))))
    find = recipes.find

    def broken(name: str) -> type:
        if name == "clip":
            raise ModuleNotFoundError("No module named 'bigpackage'", name="bigpackage")
        if name == "siglip":
            raise RuntimeError("odd")
        return find(name)

    monkeypatch.setattr(recipes, "find", broken)
    lacks = what_recipes_lack(corpus, {})
    assert lacks["clip"] == ("the package bigpackage is not installed",)
    assert lacks["siglip"] == ("it cannot be checked: odd",)
    assert lacks["sparc"] == ()


def test_a_family_is_compared_by_the_recipes_that_the_data_suit(tmp_path):
    alone = from_path(pairs(tmp_path / "own", list(range(12))))
    fitting, lacking = family_for("dual_encoders", alone)
    assert {"clip", "siglip", "sparc", "improved_clip"} <= {*fitting}
    lacks = what_recipes_lack(alone, {})
    assert lacking == {name: lacks[name] for name in lacking}
    assert not {*fitting} & {*lacking}
    with pytest.raises(UserError, match=r"No recipe of science trains on this data: tip needs table, category\."):
        family_for("science", alone)
    with pytest.raises(UserError, match="did you mean 'science'"):
        family_for("sciense", alone)


def test_what_a_batch_needs_is_lacking(tmp_path):
    for number in range(12):
        (tmp_path / f"c{number % 2}").mkdir(exist_ok=True)
        photo(number).save(tmp_path / f"c{number % 2}" / f"{number}.png")
    lacks = what_recipes_lack(from_path(tmp_path), {})
    assert lacks["alpro"] == ("text",)
    assert lacks["inductive_moment_matching"] == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "mslam", "--data", "own.csv"], "has no audio column"),
        (["train", "tip", "--data", "own.csv"], "has no image column"),
        (["train", "clip", "--data", "own.csv", "--image-column", "caption"], "is no image column"),
        (["train", "clip", "--data", "own.csv", "--text-column", "captoin"], "did you mean 'caption'"),
        (["train", "clip", "--data", "own.csv", "--format", "vqa"], "own.csv"),  # raised while the format reads
    ],
)
def test_errors_about_the_users_data_point_to_the_command(polymodal, tmp_path, words, expected):
    (tmp_path / "own.csv").write_text("caption\n" + "".join(f"thing {n}\n" for n in range(20)))
    done = polymodal(*words, "--budget", "1steps", "--out", "run")
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.endswith("`polymodal data own.csv` shows what was found.\n")


# Splits and leaks


def test_splits_of_folders_are_found_by_a_relative_path(tmp_path, monkeypatch):
    for split, count in (("train", 6), ("val", 3)):
        (tmp_path / "set" / split / "cat").mkdir(parents=True)
        for number in range(count):
            photo(number + 50 * (split == "val")).save(tmp_path / "set" / split / "cat" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    corpus = from_path("set")
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 6, "validation": 3}
    assert corpus.split_rule == "the names of files or folders"


def with_given_splits(folder: Path, rows: list[tuple[str, bytes, str]]) -> Path:
    folder.mkdir()
    records = [{"key": str(n), "split": s, "image": i, "caption": c} for n, (s, i, c) in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(records), folder / "own.parquet")
    return folder / "own.parquet"


def test_leaks_of_given_splits_are_counted_and_named(tmp_path):
    rows = [("train", encoded(photo(n)), f"thing {n}") for n in range(20)]
    rows += [("test", encoded(photo(n)), f"other {n}") for n in (3, 4)]  # 20 and 21: the same bytes
    rows += [("test", encoded(photo(5, (96, 64)), "JPEG"), "larger, as JPEG")]  # 22
    rows += [("test", encoded(photo(n)), "Thing  6") for n in (106, 107)]  # 23 and 24: the caption of row 6
    rows += [("test", encoded(photo(n)), f"clean {n}") for n in (108, 109)]
    leaks, note = find_leaks(from_path(with_given_splits(tmp_path / "own", rows)))
    counted = {leak.kind: (leak.split, leak.other, leak.rows, leak.keys[0]) for leak in leaks}
    assert counted == {
        "an equal image": ("test", "train", (20, 21), ("20", "3")),
        "an equal caption": ("test", "train", (23, 24), ("23", "6")),
        "a near-duplicate image": ("test", "train", (22,), ("22", "5")),
    }
    assert note == ""


def test_near_duplicates_are_looked_for_in_a_sample_of_many(tmp_path):
    rows = [("train", encoded(photo(n)), f"a{n}") for n in range(40)]
    rows += [("test", encoded(photo(100 + n)), f"b{n}") for n in range(40)]
    leaks, note = find_leaks(from_path(with_given_splits(tmp_path / "own", rows)), max_images=20)
    assert (leaks, note) == ([], "Near-duplicates were looked for among 20 of 80 images.")


def test_plain_images_of_different_colors_are_no_near_duplicates(tmp_path):
    plain = [encoded(PILImage.new("RGB", (32, 32), (0, 40 * n, 0))) for n in range(6)]
    rows = [("test" if n % 2 else "train", image, f"color {n}") for n, image in enumerate(plain)]
    assert find_leaks(from_path(with_given_splits(tmp_path / "own", rows))) == ([], "")


def test_examples_hold_no_control_characters(polymodal, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.csv").write_text('caption\n"red \x1b[31m"\nb\nc\n')
    shown = polymodal("data", "own").stdout
    assert "red ?[31m" in shown
    assert "\x1b" not in shown


def test_values_that_cannot_be_decoded_are_counted(tmp_path):
    rows = [("train", encoded(photo(n))[: 60 if n == 3 else None], f"a{n}") for n in range(20)]
    report = report_on(from_path(with_given_splits(tmp_path / "own", rows)))
    image = next(column for column in report.columns if column.modality == "image")
    assert (image.sampled, image.unreadable, image.usable) == (20, 1, True)
    assert image.reason.startswith("3: ")


# Rows that a run was trained on


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as now:
        now.setenv("POLYMODAL_CACHE", str(folder / "cache"))
        recipe = recipes.find("clip").tiny()
        train(recipe, from_path(pairs(folder / "own", list(range(40)))), Budget(steps=1), out=folder / "run")
    return folder / "run"


def changed(order: str) -> list[int]:
    rows = list(range(40))
    orders = {
        "row put in front": [100, *rows],
        "first row removed": rows[1:],
        "sorted anew": sorted(rows, key=str, reverse=True),
        "unchanged": rows,
    }
    return orders[order]


@pytest.mark.parametrize("order", ["unchanged", "row put in front", "first row removed", "sorted anew"])
def test_no_test_row_was_trained_on_when_rows_move(order, trained, tmp_path, recwarn):
    corpus = from_path(pairs(tmp_path, changed(order)))
    assert len(corpus.splits["test"]) > 4
    assert warn_of_trained_rows(load_run(trained), corpus) == 0
    assert not recwarn.list


def test_test_rows_that_were_trained_on_are_reported(trained, tmp_path):
    run, corpus = load_run(trained), from_path(pairs(tmp_path, list(range(40))))
    rows = corpus.splits["train"][:5]
    moved = corpus.with_splits({"train": corpus.splits["test"], "test": np.append(rows, corpus.splits["test"])})
    named = ", ".join(corpus.key(int(row)) for row in sorted(rows)[:3])
    with pytest.warns(UserWarning, match=rf"5 of {len(rows) + len(corpus.splits['test'])} test rows .* {named}"):
        evaluate(run, moved)


def test_a_run_on_a_table_in_memory_knows_its_rows(tmp_path):
    corpus = from_path(pairs(tmp_path, list(range(40))))
    image, text = corpus.column_with(Image), corpus.column_with(Text)
    records = [{"image": corpus.raw(row, image), "caption": corpus.raw(row, text)} for row in range(40)]
    table = from_table([record | {"split": "train" if row < 30 else "test"} for row, record in enumerate(records)])
    run = train(recipes.find("clip").tiny(), table, Budget(steps=1), out=tmp_path / "run")
    again = from_table([record | {"split": "test" if row < 3 else "train"} for row, record in enumerate(records)])
    assert warn_of_trained_rows(run, table) == 0
    with pytest.warns(UserWarning, match="3 of 3 test rows"):
        assert warn_of_trained_rows(run, again) == 3


def test_validation_rows_that_were_trained_on_are_reported_where_they_are_evaluated_on(trained, tmp_path):
    corpus = from_path(pairs(tmp_path, list(range(40))))
    rows = corpus.splits["train"]
    moved = corpus.with_splits({"train": rows[5:], "validation": rows[:5]})
    with pytest.warns(UserWarning, match="5 of 5 validation rows"):
        assert warn_of_trained_rows(load_run(trained), moved) == 5


def test_the_same_content_under_other_keys_and_as_files_is_known(trained, tmp_path):
    original = from_path(pairs(tmp_path / "first", list(range(40))))
    lines = ["name,file,words,split", "x,0.png,else,train"]
    for number, row in enumerate(original.splits["train"][:4].tolist()):
        image = original.raw(row, original.column_with(Image))
        (tmp_path / f"{number}.png").write_bytes(image)
        lines.append(f"new-{number},{number}.png,words {number},test")
    photo(500).save(tmp_path / "9.png")
    lines.append("new-9,9.png,never there,test")
    (tmp_path / "again.csv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="4 of 5 test rows"):
        assert warn_of_trained_rows(load_run(trained), from_path(tmp_path / "again.csv")) == 4


def test_only_runs_on_users_data_keep_their_rows(trained, tmp_path):
    with np.load(trained / "training_rows.npz", allow_pickle=False) as kept:
        assert len(kept["identities"]) == len(from_path(pairs(tmp_path, list(range(40)))).splits["train"])
    built_in = dataclasses.replace(synthetic.corpus(tmp_path / "synthetic"), choices={"corpus": "synthetic"})
    train(recipes.find("clip").tiny(), built_in, Budget(steps=1), out=tmp_path / "run")
    assert not (tmp_path / "run" / "training_rows.npz").exists()
