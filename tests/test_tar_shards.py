"""Tar files of webdataset and img2dataset, read whole and where they lie: both by the same rules."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import polymodal as pm
from format_samples import captions, img2dataset, png
from polymodal.cli._flags import DataOptions
from polymodal.corpora import Corpus, from_path, from_shards
from polymodal.errors import UserError
from polymodal.modalities import Conversations, Table

Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["whole", "streamed"])
def opened(request):
    return from_path if request.param == "whole" else lambda path, **columns: from_shards(str(path), **columns)


def write(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pair(number: int, suffix: str = "png", **others: bytes) -> Members:
    members = {suffix: png(number), "txt": f"thing number {number}".encode()} | others
    return [(f"{number:05d}.{kind.replace('_', '.')}", content) for kind, content in members.items()]


def shard(path: Path, first: int = 0, count: int = 12, suffix: str = "png") -> Path:
    return write(path, [member for number in range(first, first + count) for member in pair(number, suffix)])


def rows(corpus: Corpus, column: str = "text") -> list[str | None]:
    return [None if corpus.raw(row, column) is None else corpus[row][column][0].text for row in range(len(corpus))]


def test_several_image_suffixes_in_one_shard_and_in_two_are_one_column(opened, tmp_path):
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, ("png", "jpg")[n % 2])])
    shard(tmp_path / "1.tar", 12, 6, "webp")
    corpus = opened(tmp_path)
    assert rows(corpus) == [f"thing number {n}" for n in range(18)]
    assert all(corpus[row]["image"].size == (8, 6) for row in range(18))


def test_two_images_of_an_example_are_two_columns(opened, tmp_path):
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, "jpg", seg_png=png(12 - n))])
    corpus = opened(tmp_path)
    assert corpus[3]["image"].getpixel((0, 0)) == (60, 3, 7)
    assert opened(tmp_path, image="seg.png")[3]["seg.png"].getpixel((0, 0)) == (180, 3, 7)
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, "jpg", png=png(12 - n))])
    with pytest.raises(UserError, match="Several columns may have images: jpg, png"):
        opened(tmp_path)
    assert opened(tmp_path, image="png")[3]["png"].getpixel((0, 0)) == (180, 3, 7)


def test_an_example_without_its_text_or_image_is_counted_and_named(opened, tmp_path):
    members = [m for n in range(30) for m in pair(n) if m[0] not in ("00004.txt", "00021.txt", "00022.png")]
    corpus = opened(write(tmp_path / "0.tar", members))
    assert len(corpus) == 30
    assert corpus.raw(4, "text") is None
    assert corpus.raw(22, "image") is None
    assert {(one.count, one.reason, one.example.rpartition("/")[2]) for one in corpus.skipped} == {
        (1, "has no image", "0.tar: 00022"),
        (2, "has no text", "0.tar: 00004"),
    }


def test_commands_say_what_they_leave_out(tmp_path, capsys):
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n) if m[0] != "00004.txt"])
    for stream in (False, True):
        DataOptions(data=(str(tmp_path / "0.tar"),), stream=stream).open()
        assert capsys.readouterr().err == f"1 left out: has no text ({tmp_path / '0.tar'}: 00004).\n"


def test_one_name_twice_is_a_sentence(opened, tmp_path):
    write(tmp_path / "0.tar", [*pair(0), *pair(1), *pair(0)])
    with pytest.raises(UserError, match="'00000' in two places; make names unique"):
        opened(tmp_path / "0.tar")
    write(tmp_path / "0.tar", [*pair(0), *pair(0)])
    with pytest.raises(UserError, match=r"the member '00000.png' twice"):
        opened(tmp_path / "0.tar")


def test_json_whose_fields_are_null_then_text(opened, tmp_path):
    fields = [{"note": None, "n": 1}, {"note": "hello", "n": None}, {"other": [1]}]
    records = [json.dumps(fields[min(n // 5, 2)]).encode() for n in range(12)]
    corpus = opened(write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, json=records[n])]))
    assert rows(corpus) == captions()
    assert opened(tmp_path / "0.tar", text="note").raw(7, "note") == "hello"


def test_the_text_member_is_the_caption_whatever_a_json_has(opened, tmp_path):
    record = json.dumps({"text": "not this", "caption": "nor this", "image": "x.png"}).encode()
    corpus = opened(write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, json=record)]))
    assert rows(corpus) == captions()
    assert corpus[3]["image"].size == (8, 6)
    assert opened(tmp_path / "0.tar", text="caption").column_with(type(corpus.columns["text"])) == "caption"


def test_members_that_are_no_data_are_left_out(opened, tmp_path):
    junk = [
        ("._00000.png", b"x"),
        ("README.md", b"x"),
        ("README", b"x"),
        ("__MACOSX/a.png", b"x"),
        ("d/.DS_Store", b"x"),
    ]
    corpus = opened(write(tmp_path / "0.tar", junk + [m for n in range(12) for m in pair(n)]))
    assert rows(corpus) == captions()
    assert corpus.skipped == ()


def test_gzip_under_the_name_tar(tmp_path):
    shard(tmp_path / "0.tar")
    (tmp_path / "0.tar").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    assert rows(from_path(tmp_path / "0.tar")) == captions()
    with pytest.raises(UserError, match=r"compressed with gzip.*decompress it"):
        from_shards(str(tmp_path / "0.tar"))


def test_names_with_dots_are_a_sentence(opened, tmp_path):
    members = [(f"IMG_1.{n}.{kind}", content) for n in range(30) for kind, content in (("png", png(n)), ("txt", b"x"))]
    with pytest.raises(UserError, match=r"have a dot that does not begin the suffix, such as 'IMG_1.0.png'"):
        opened(write(tmp_path / "0.tar", members))


def test_dots_of_folders_and_many_members_of_an_example_are_fine(opened, tmp_path):
    members = [
        (f"v1.5/{n}.{kind}", content)
        for n in range(12)
        for kind, content in [("jpg", png(n)), ("txt", b"x"), *((f"{k}.flow", b"f") for k in range(20))]
    ]
    assert len(opened(write(tmp_path / "0.tar", members))) == 12


def test_classes(opened, tmp_path):
    write(
        tmp_path / "0.tar", [m for n in range(40) for m in [(f"{n}.jpg", png(n)), (f"{n}.cls", str(n // 10).encode())]]
    )
    write(tmp_path / "1.tar", [m for n in range(40) for m in [(f"x{n}.jpg", png(n)), (f"x{n}.cls", b"rare")]])
    corpus = opened(tmp_path)
    assert corpus.label == "label"
    assert corpus.columns["label"].names == ("0", "1", "2", "3", "rare")
    assert corpus[79]["label"] == 4


@pytest.mark.parametrize("cut", ["content", "header", "garbage"])
def test_the_whole_examples_of_a_damaged_tar_are_read(opened, cut, tmp_path):
    content = shard(tmp_path / "0.tar").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        member = tar.getmember("00007.txt")
    if cut == "garbage":
        content = content[: member.offset] + b"\x07" * 4096
    else:
        content = content[: member.offset_data + 5 if cut == "content" else member.offset + 100]
    (tmp_path / "0.tar").write_bytes(content)
    corpus = opened(tmp_path / "0.tar")
    assert rows(corpus) == captions()[:7]
    assert "damaged after 7 whole examples" in corpus.skipped[0].reason
    (tmp_path / "0.tar").write_bytes(content[:700])
    with pytest.raises(UserError, match="cannot be read as webdataset"):
        opened(tmp_path / "0.tar")


def test_what_is_no_tar_is_a_sentence(opened, tmp_path):
    for content in (b"", b"<html>not found</html>" * 100):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as webdataset"):
            opened(tmp_path / "0.tar")


# img2dataset


def test_whole_output_of_img2dataset(opened, tmp_path):
    corpus = opened(img2dataset(tmp_path))
    assert rows(corpus) == captions()
    assert corpus[5]["image"].size == (8, 6)


def test_downloads_that_failed_are_counted(tmp_path):
    (failed,) = from_path(img2dataset(tmp_path)).skipped
    assert (failed.count, failed.example) == (1, "000000012: HTTP Error 404: Not Found")
    assert "failed_to_download" in failed.reason


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_other_outputs_of_img2dataset(form, tmp_path):
    table = pq.read_table(img2dataset(tmp_path) / "00000.parquet")
    (tmp_path / "00000.tar").unlink()
    if form == "files":
        for n, text in enumerate(captions()):
            place = tmp_path / "00000" / f"{n:09d}"
            place.parent.mkdir(exist_ok=True)
            place.with_suffix(".jpg").write_bytes(png(n))
            place.with_suffix(".txt").write_text(text)
            place.with_suffix(".json").write_text(json.dumps({"caption": text}))
    else:
        images = pa.array([*(png(n) for n in range(12)), None], pa.binary())
        pq.write_table(table.append_column("jpg", images), tmp_path / "00000.parquet")
    corpus = from_path(tmp_path)
    assert rows(corpus, "caption") == captions()
    assert all(corpus[row]["image" if form == "files" else "jpg"].size == (8, 6) for row in range(12))
    assert [one.count for one in corpus.skipped] == [1]


# Streams


def test_training_on_shards_that_differ(tmp_path):
    shard(tmp_path / "0.tar", 0, 20, "png")
    shard(tmp_path / "1.tar", 20, 20, "jpg")
    write(tmp_path / "2.tar", [m for n in range(40, 60) for m in pair(n, json=b'{"n": 1}')])
    recipe = pm.recipes.clip.Recipe(batch_size=8)
    run = pm.train(recipe, from_shards(str(tmp_path)), pm.Budget(examples=120), runtime=pm.RuntimeConfig(device="cpu"))
    assert run.record["steps"] == 15


def test_a_sentence_for_all_that_a_block_may_raise(tmp_path):
    pq.write_table(pa.table({"text": [f"thing {n}" for n in range(20)]}), tmp_path / "0.parquet", row_group_size=2)
    corpus = from_shards(str(tmp_path / "0.parquet"))
    (tmp_path / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"0.parquet cannot be read any more"):
        corpus.raw(9, "text")


def test_a_path_that_exists_is_never_a_pattern(tmp_path):
    for folder in ("t[1]", "t1", "st*r", "star"):
        shard(tmp_path / folder / "0.tar", count=4 if "1" in folder else 6)
    assert len(from_shards(str(tmp_path / "t[1]"))) == 4
    assert from_shards(str(tmp_path / "st*r")).about.description.startswith("6 examples in 1 shards")
    assert len(from_shards(str(tmp_path / "t?" / "*.tar"))) == 4


def test_braces_are_shards(tmp_path):
    for number in range(3):
        shard(tmp_path / f"{number:05d}.tar", 4 * number, 4)
    assert rows(from_shards(str(tmp_path / "{00001..00002}.tar"))) == captions()[4:]
    assert len(from_shards([str(tmp_path / "00000.tar"), str(tmp_path / "00002.tar")])) == 8
    with pytest.raises(UserError, match=r"00003.tar, which .* stands for"):
        from_shards(str(tmp_path / "{00001..00003}.tar"))


def test_shards_with_other_columns_and_types(tmp_path):
    images = [{"bytes": png(n), "path": None} for n in range(4)]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c", "d"]}), tmp_path / "0.parquet")
    large = pa.array([["x", "y"]] * 4, pa.large_list(pa.large_string()))
    pq.write_table(pa.table({"more": [1] * 4, "caption": large, "image": images}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"image": images}), tmp_path / "2.parquet")
    corpus = from_shards(str(tmp_path))
    texts = [corpus.raw(row, "caption") for row in range(12)]
    assert texts == [["a"], ["b"], ["c"], ["d"], *[["x", "y"]] * 4, *[None] * 4]
    assert corpus[11]["image"].size == (8, 6)


def test_streamed_splits_are_those_of_the_files(tmp_path):
    for number, split in enumerate(("test", "train", "validation")):
        pq.write_table(pa.table({"text": [f"{split} {n}" for n in range(number + 2)]}), tmp_path / f"{split}-0.parquet")
    corpus = from_shards(str(tmp_path))
    assert {split: [corpus.raw(row, "text") for row in rows] for split, rows in corpus.splits.items()} == {
        split: [f"{split} {n}" for n in range(count)] for split, count in (("train", 3), ("validation", 4), ("test", 2))
    }


def test_streamed_columns_other_than_images_and_texts(tmp_path):
    questions = [[{"question": "what?", "answer": str(n)}] for n in range(20)]
    labels = [["cat", "dog"][n % 2] for n in range(20)]
    pq.write_table(pa.table({"qa": questions, "label": labels}), tmp_path / "0.parquet", row_group_size=4)
    corpus = from_shards(str(tmp_path / "0.parquet"))
    assert {name: type(kind).__name__ for name, kind in corpus.columns.items()} == {
        "qa": "Questions",
        "label": "Category",
    }
    assert corpus[17]["label"] == 1
    assert corpus[17]["qa"][0].answer == "17"


def test_fields_of_json_members_are_the_same_in_a_stream(opened, tmp_path):
    # The class "c", and the field `late`, are behind the rows that a stream looks at.
    for shard_number in range(2):
        members = []
        for n in range(700 * shard_number, 700 * shard_number + 700):
            record = {"label": "c" if n in (150, 1370) else "ab"[n % 2], "n": n, "score": n / 2, "nested": {"a": [n]}}
            members += pair(n, json=json.dumps(record | ({"late": f"note {n}"} if n == 350 else {})).encode())
        write(tmp_path / f"{shard_number}.tar", members)
    corpus = opened(tmp_path)
    assert corpus.label == "label"
    assert corpus.columns["label"].names == ("a", "b", "c")
    assert [corpus.raw(row, "label") for row in (0, 1, 150, 1370)] == ["a", "b", "c", "c"]
    assert opened(tmp_path, text="late").raw(350, "late") == "note 350"
    assert {type(kind).__name__ for kind in corpus.columns.values()} >= {"Image", "Text", "Category"}


def test_a_field_that_is_named_like_a_member_is_a_class_in_a_stream_too(opened, tmp_path):
    records = [json.dumps({"text": "ab"[n % 2]}).encode() for n in range(12)]
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, json=records[n])])
    assert opened(tmp_path, label="json.text").columns["json.text"].names == ("a", "b")


def test_labels_that_a_stream_does_not_know(tmp_path):
    records = [json.dumps({"label": "ab"[n % 2], "tags": ["x"]}).encode() for n in range(12)]
    write(tmp_path / "0.tar", [m for n in range(12) for m in pair(n, json=records[n])])
    with pytest.raises(UserError, match=r"The column 'tags' has lists, records, or too many different values"):
        from_shards(str(tmp_path), label="tags")
    with pytest.raises(UserError, match="There is no column 'lable'; did you mean 'label'"):
        from_shards(str(tmp_path), label="lable")


def test_class_names_of_datasets_are_kept_in_a_stream(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog", "eel"])})
    rows = [{"text": f"t{n}", "label": n % 2 if n else -1} for n in range(20)]
    Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "0.parquet"))
    for corpus in (from_shards(str(tmp_path / "0.parquet")), from_path(tmp_path / "0.parquet")):
        assert corpus.columns["label"].names == ("cat", "dog", "eel")
        assert corpus.raw(3, "label") == "dog"
        assert corpus.raw(0, "label") is None, "-1: not labelled"


def test_paths_of_images_in_a_stream(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    pq.write_table(pa.table({"image": ["a.png"] * 4, "text": ["x"] * 4}), tmp_path / "0.parquet")
    assert from_shards(str(tmp_path / "0.parquet"))[2]["image"].size == (8, 6)
    memory = fsspec.filesystem("memory")
    memory.pipe("/paths/0.parquet", (tmp_path / "0.parquet").read_bytes())
    with pytest.raises(UserError, match="has paths of files, which are not read from a URL"):
        from_path("memory://paths/0.parquet")
    memory.rm("/paths", recursive=True)


def test_what_cannot_be_streamed_is_a_sentence(tmp_path):
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(UserError, match=r"no .parquet or .tar shard at .*csv, but .csv, which cannot be streamed"):
        from_path(tmp_path / "pairs.csv", stream=True)
    with pytest.raises(UserError, match="Data in the format csv cannot be streamed"):
        from_path(tmp_path / "pairs.csv", "csv", stream=True)
    with pytest.raises(UserError, match=r"no .parquet or .tar shard"):
        from_path(tmp_path / "missing", stream=True)
    shard(tmp_path / "0.tar")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"holds .tar and .parquet shards"):
        from_path(tmp_path, stream=True)
    (tmp_path / "1.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match=r"1.parquet cannot be read"):
        from_path(tmp_path / "1.parquet", stream=True)


def test_errors_about_shards_name_the_command_that_shows_data(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match=r"`polymodal data .*` shows what was found"):
        from_shards(str(tmp_path))


def test_categories_of_a_stream_are_those_of_all_rows(tmp_path):
    for number in range(6):
        colors = ("red", "green") if number == 1 else ("red", "blue")  # the sample has the blocks 0, 3 and 5
        sizes = ("1", "2") if number != 4 else ("1", "large")
        records = [
            {
                "image": png(20 * number + n),
                "caption": f"thing {n}",
                "color": colors[n % 2],
                "size": sizes[n % 2],
                "price": n,
            }
            for n in range(20)
        ]
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{number:05}.parquet")
    corpus = from_shards(str(tmp_path))
    column = corpus.column_with(Table)
    table = corpus.columns[column]
    assert table.categorical == {"color": ("blue", "green", "red"), "size": ("1", "2", "large")}
    assert list(table.numeric) == ["price"]
    assert corpus.value(21, column).categories.tolist() == [1, 1]


def test_no_numbered_image_of_a_stream_is_lost(tmp_path):
    kind = pa.schema({"question": pa.string(), "answer": pa.string()} | {f"image_{n}": pa.binary() for n in (1, 2)})
    for number in range(6):
        records = [
            {"question": f"<image 1>{n}?", "answer": f"{n}.", "image_1": png(n), "image_2": png(100 + n)}
            for n in range(20)
        ]
        if number != 1:  # the sample has the blocks 0, 3 and 5
            records = [record | {"image_2": None} for record in records]
        pq.write_table(pa.Table.from_pylist(records, kind), tmp_path / f"{number:05}.parquet")
    corpus = from_shards(str(tmp_path))
    column = corpus.column_with(Conversations)
    images = [
        sum(not isinstance(part, str) for message in corpus.value(row, column) for part in message.parts)
        for row in (3, 23)
    ]
    assert images == [1, 2]
