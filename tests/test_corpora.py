"""Real data: splits that do not leak, preparation that is whole or absent, and the user's own files."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.corpora import _cache, _packages
from polymodal.corpora._splits import Groups, split_groups, thumbnail
from polymodal.corpora.corpus import About
from polymodal.corpora.emoji import IMAGES, LANGUAGES
from polymodal.corpora.saved import load_description, save_corpus
from polymodal.corpora.user_files import from_path
from polymodal.errors import UserError
from polymodal.modalities import Category, History, Image, Table, Text
from polymodal.modalities.history import Item


def png(color=(200, 30, 30), size=(20, 16)) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


# emoji


def test_emoji_counts(emoji):
    assert len(LANGUAGES) == 20
    vendors = [emoji.raw(row, "vendor") for row in range(len(emoji))]
    assert {vendor: vendors.count(vendor) for vendor in IMAGES} == {
        "google": 1911,
        "twitter": 1911,
        "fluent": 1542,
        "openmoji": 1911,
    }
    for split, rows in emoji.splits.items():
        assert {vendors[row] for row in rows} == {split.removeprefix("test_") if "_" in split else "google"}


def test_emoji_has_names_in_every_language(emoji):
    languages = [{caption.language for caption in emoji.value(row, "captions")} for row in emoji.rows("test")]
    for language in LANGUAGES:
        assert np.mean([language in found for found in languages]) > 0.95, language


def test_no_group_straddles_a_split(emoji):
    group_splits: dict[str, set[str]] = {}
    for row in range(len(emoji)):
        if split := emoji.raw(row, "split"):
            group_splits.setdefault(emoji.raw(row, "group"), set()).add(split.partition("_")[0])
    assert all(len(splits) == 1 for splits in group_splits.values())


@pytest.mark.parametrize(
    "alike",
    [
        ("1f468-200d-1f692", "1f469-200d-1f692", "1f9d1-200d-1f692"),  # firefighters
        ("1f550", "1f55b", "1f567"),  # clock faces
        ("1f1e6-1f1e8", "1f1e9-1f1ea", "1f3c1"),  # flags
        ("0031-fe0f-20e3", "0039-fe0f-20e3"),  # keycaps
    ],
)
def test_look_alikes_are_one_group(emoji, alike):
    assert len({group_of(emoji)[f"google/{code}"] for code in alike}) == 1


def test_different_things_are_different_groups(emoji):
    assert len({group_of(emoji)[f"google/{code}"] for code in ("1f431", "1f436", "1f34e", "1f697")}) == 4


def group_of(corpus) -> dict[str, str]:
    return {corpus.raw(row, "key"): corpus.raw(row, "group") for row in range(len(corpus))}


def test_no_test_image_is_almost_a_training_image(emoji):
    train, test = (
        np.stack([thumbnail(emoji.value(row, "image")) for row in emoji.rows(split)]) for split in ("train", "test")
    )
    nearest = [np.abs(train - image).mean(axis=(1, 2, 3)).min() for image in test]
    assert min(nearest) > 4.0


def test_categories_are_spread_over_the_splits(emoji):
    train, test = ([emoji.raw(row, "category") for row in emoji.rows(split)] for split in ("train", "test"))
    for category in ("Food & Drink", "Objects", "Animals & Nature", "Activities"):
        share = test.count(category) / (test.count(category) + train.count(category))
        assert 0.15 < share < 0.3, category


def test_scenes_have_masks_and_boxes_that_agree(scenes):
    for row in scenes.rows("test")[:30]:
        example = scenes[row]
        assert 2 <= len(example["regions"]) <= 4
        assert set(np.unique(example["mask"])) == set(range(len(example["regions"]) + 1))
        caption = example["caption"][0].text
        for number, region in enumerate(example["regions"], start=1):
            rows, columns = np.nonzero(example["mask"] == number)
            left, top, right, bottom = region.box
            assert left <= columns.min() <= columns.max() < right
            assert top <= rows.min() <= rows.max() < bottom
            assert region.name in caption


# preparation


def test_a_killed_preparation_leaves_nothing_half_made(tmp_path):
    program = """
import time
from polymodal.corpora._cache import prepared
def slow(folder):
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
prepared("thing-1", slow)
"""
    environment = os.environ | {"POLYMODAL_CACHE": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "corpora" / "thing-1").exists()
    done = subprocess.run(
        [sys.executable, "-c", program.replace("time.sleep(60)", "pass")], env=environment, check=True, timeout=60
    )
    assert done.returncode == 0
    assert [path.name for path in (tmp_path / "corpora").iterdir() if "partial" in path.name] == []
    assert (tmp_path / "corpora" / "thing-1" / "half").read_text() == "half"


def test_a_second_process_waits_for_the_first(tmp_path):
    program = """
import sys, time
from pathlib import Path
from polymodal.corpora._cache import prepared
def make(folder):
    (folder / "by").write_text(sys.argv[1])
    print("ready", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.05)
print((prepared("thing-1", make) / "by").read_text())
"""
    go = tmp_path / "go"
    environment = os.environ | {"POLYMODAL_CACHE": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    start = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", program, "first", str(go)], **start)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    second = subprocess.Popen([sys.executable, "-c", program, "second", str(go)], **start)
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    go.touch()
    assert second.communicate(timeout=60)[0] == "first\n"
    assert first.communicate(timeout=60)[0] == "first\n"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))

    def fills_the_disk(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="full; free some space"):
        _cache.prepared("thing-1", fills_the_disk)
    assert not any(path.is_dir() for path in (tmp_path / "corpora").iterdir())


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="POLYMODAL_CACHE"):
        _cache.prepared("thing-1", lambda folder: None)


PACKAGE = _packages.NpmPackage("some-package", "1.0.0", "0" * 64, 1)


def test_without_npm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'polymodal\[npm\]'"):
        _packages.fetch(PACKAGE, "emoji")


@pytest.mark.parametrize(
    ("says", "expected"), [("npm error network ENOTFOUND", "check the network"), ("npm error ENOSPC", "full")]
)
def test_npm_failures_are_one_sentence(tmp_path, monkeypatch, says, expected):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=expected):
        _packages.fetch(PACKAGE, "emoji")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_wrong_archive_is_removed_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path))
    archive = tmp_path / "downloads" / PACKAGE.archive
    archive.parent.mkdir()
    archive.write_bytes(b"something else")
    with pytest.raises(UserError, match="SHA-256"):
        _packages.fetch(PACKAGE, "emoji")
    assert not archive.exists()


# splits


def test_groups_are_transitive():
    groups = Groups(6)
    groups.join_equal([(0, "a"), (1, "a"), (1, "b"), (2, "b"), (4, "c"), (5, "d")])
    assert [groups.root(row) for row in range(6)] == [0, 0, 0, 3, 4, 5]


def test_split_groups_keeps_shares_and_puts_a_huge_group_into_training():
    categories = ["x"] * 200 + ["y"] * 100
    groups = [f"g{row}" for row in range(200)] + ["huge"] * 60 + [f"h{row}" for row in range(40)]
    split_of = split_groups(categories, groups)
    assert split_of["huge"] == "train"
    splits = [split_of[group] for group in groups]
    assert splits[:200].count("test") == pytest.approx(40, abs=1)
    assert splits[:200].count("validation") == pytest.approx(20, abs=1)
    assert split_groups(categories, groups) == split_of


# the user's own pairs


def pairs(count: int = 40) -> list[dict]:
    return [
        {"image": png((row * 5 % 255, row * 3 % 255, row)), "caption": f"thing number {row}"} for row in range(count)
    ]


def own_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(pairs()), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def own_csv(folder: Path, absent: int | None = None) -> Path:
    lines = ["file,caption"]
    for row, pair in enumerate(pairs()):
        lines.append(f"pictures/{row}.png,{pair['caption']}")
        if row != absent:
            (folder / "pictures").mkdir(exist_ok=True)
            (folder / "pictures" / f"{row}.png").write_bytes(pair["image"])
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def own_jsonl(folder: Path) -> Path:
    own_csv(folder)
    (folder / "pairs.csv").unlink()
    rows = [
        {"file": f"pictures/{row}.png", "captions": [pair["caption"], f"no. {row}"]} for row, pair in enumerate(pairs())
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def own_webdataset(folder: Path) -> Path:
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for row, pair in enumerate(pairs()):
            for suffix, data in (("png", pair["image"]), ("txt", pair["caption"].encode())):
                info = tarfile.TarInfo(f"{row:05d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "pairs.tar"


@pytest.mark.parametrize("make", [own_parquet, own_csv, own_jsonl, own_webdataset])
def test_own_pairs_are_found_by_type(make, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    corpus = corpora.from_path(make(tmp_path))
    assert len(corpus) == 40
    row = int(corpus.rows("train")[0])
    image, text = list(corpus.columns)
    assert corpus.value(row, image).size == (20, 16)
    assert corpus.value(row, text)[0].text == f"thing number {row}"
    assert sorted(np.concatenate(list(corpus.splits.values())).tolist()) == list(range(40))
    assert all(len(rows) for rows in corpus.splits.values())  # tests/test_user_splits.py has their sizes
    again = corpora.reopen(json.loads(json.dumps(dict(corpus.choices))))
    assert {name: rows.tolist() for name, rows in again.splits.items()} == {
        name: rows.tolist() for name, rows in corpus.splits.items()
    }


def test_equal_captions_and_equal_images_stay_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    rows = pairs(100)
    for row in range(0, 100, 10):
        rows[row]["caption"] = rows[row + 1]["caption"].upper()
        rows[row + 2]["image"] = rows[row + 3]["image"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = corpora.from_path(tmp_path / "a.parquet")
    side = {int(row): split for split, of_split in corpus.splits.items() for row in of_split}
    for row in range(0, 100, 10):
        assert side[row] == side[row + 1]
        assert side[row + 2] == side[row + 3]


def test_a_split_column_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    rows = [pair | {"split": "test" if row < 10 else "train"} for row, pair in enumerate(pairs())]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert corpora.from_path(tmp_path / "a.parquet").rows("test").tolist() == list(range(10))


def test_wrong_files_say_what_was_found_and_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_text("this is not parquet")
    pq.write_table(pa.table({"width": [1, 2], "when": [3, 4]}), tmp_path / "no_picture.parquet")
    pq.write_table(pa.table({"a": [png()], "b": [png()], "caption": ["x"]}), tmp_path / "two.parquet")
    cases = {
        tmp_path / "missing.parquet": "There is no file",
        tmp_path / "notes.docx": r"holds 1 \.docx, which is in no format that is read. These are: .*csv",
        tmp_path / "empty": "holds nothing that can be read",
        tmp_path / "bad.parquet": "cannot be read as parquet",
        tmp_path / "no_picture.parquet": r"paths of images, sounds or clips.*; the columns are width \(int64\)",
        tmp_path / "two.parquet": "Several columns.*a, b.*--image-column",
    }
    for path, expected in cases.items():
        with pytest.raises(UserError, match=expected):
            corpora.from_path(path)
    with pytest.raises(UserError, match="did you mean 'caption'"):
        corpora.from_path(tmp_path / "two.parquet", image="a", text="captoin")
    with pytest.raises(UserError, match="which is no text column"):
        corpora.from_path(tmp_path / "two.parquet", image="a", text="b")


def test_unknown_corpora_and_splits_suggest(emoji):
    with pytest.raises(UserError, match="did you mean 'emoji'"):
        corpora.load_corpus("emojii")
    with pytest.raises(UserError, match="no split 'dev'; it has train"):
        emoji.rows("dev")


# Corpora that polymodal wrote


def few_rows(count: int = 5) -> list[dict]:
    return [
        {
            "key": f"number {number}",
            "split": "train" if number else "test",
            "text": [{"text": f"the text {number}", "language": "en"}],
            "kind": "even" if number % 2 == 0 else "odd",
        }
        for number in range(count)
    ]


WRITTEN = {"text": Text({"en": 2.0}), "kind": Category(("even", "odd"))}
ABOUT = About("mine", "five texts", "the user's own", "nowhere", ("text", "category"))


def test_what_was_written_opens_as_it_was(tmp_path):
    made = save_corpus(tmp_path / "out", ABOUT, WRITTEN, few_rows(), label="kind", made=lambda: {"by": "hand"})
    for corpus in (made, from_path(tmp_path / "out"), corpora.reopen(made.choices)):
        assert dict(corpus.columns) == {"text": Text({"en": 2.0}), "kind": Category(("even", "odd"))}
        assert {name: rows.tolist() for name, rows in corpus.splits.items()} == {"test": [0], "train": [1, 2, 3, 4]}
        assert corpus.value(3, "text")[0].text == "the text 3"
        assert corpus.value(3, "kind") == 1
        assert (corpus.key(2), corpus.label, corpus.about) == ("number 2", "kind", ABOUT)
    assert load_description(tmp_path / "out")["made"] == {"by": "hand"}


def test_what_was_stopped_leaves_no_folder_that_looks_whole(tmp_path):
    def stopped():
        yield from few_rows()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_corpus(tmp_path / "out", ABOUT, WRITTEN, stopped())
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    save_corpus(tmp_path / "out", ABOUT, WRITTEN, few_rows())  # an empty folder is no obstacle
    with pytest.raises(UserError, match="is not empty; choose another --out"):
        save_corpus(tmp_path / "out", ABOUT, WRITTEN, few_rows())


def test_a_catalogue_of_items_is_read_as_it_was_written(tmp_path):
    column = History((Item("one", "text", ("fact",), ("label",)), Item("two", "")))
    row = {"key": "one", "split": "train", "history": [1, 0]}
    assert save_corpus(tmp_path / "out", ABOUT, {"history": column}, [row]).columns == {"history": column}


def test_every_modality_is_described_in_full(emoji, scenes, tmp_path):
    columns = {f"{corpus.name} {name}": kind for corpus in (emoji, scenes) for name, kind in corpus.columns.items()}
    columns["table"] = Table({"width": "cm"}, {"colour": ("red", "blue")})
    columns["picture"] = Image(tmp_path / "pictures")
    written = save_corpus(tmp_path / "out", ABOUT, columns, [{"key": "one", "split": "train"}])
    assert dict(written.columns) == columns


@pytest.mark.parametrize(
    ("file", "content"), [("corpus.json", "{"), ("corpus.json", "{}"), ("rows.arrow", "not arrow")]
)
def test_a_damaged_corpus_is_one_sentence(file, content, tmp_path):
    save_corpus(tmp_path / "out", ABOUT, WRITTEN, few_rows())
    (tmp_path / "out" / file).write_text(content)
    with pytest.raises(UserError, match=r"is damaged.*make it again"):
        from_path(tmp_path / "out")
