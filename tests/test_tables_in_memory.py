"""Tables of Python, hub data sets and files at URLs as data."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

import polymodal as pm
from format_samples import captions, png, saved_dataset, written_images
from polymodal.corpora import Corpus, from_path, from_table, open_data, reopen
from polymodal.corpora.hub import HubName, parse_name
from polymodal.errors import UserError

QUIET = pm.RuntimeConfig(device="cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYMODAL_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def texts(corpus: Corpus, column: str = "text") -> list[str]:
    return [corpus[row][column][0].text for row in range(len(corpus))]


def records() -> list[dict]:
    return [{"image": png(n), "text": text} for n, text in enumerate(captions())]


class ArrowOnly:
    """A frame of another library, such as polars, which has Arrow's interface alone."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def dataset():
    from datasets import Dataset

    return Dataset.from_list(records())


TABLES = {
    "records": records,
    "columns": lambda: {"image": [one["image"] for one in records()], "text": captions()},
    "pyarrow": lambda: pa.Table.from_pylist(records()),
    "batch": lambda: pa.RecordBatch.from_pylist(records()),
    "arrow": lambda: ArrowOnly(
        pa.table({"image": [png(n) for n in range(12)], "text": pa.array(captions(), pa.large_string())})
    ),
    "pandas": lambda: pd.DataFrame(records()),
    "PIL": lambda: [
        {"image": PILImage.new("RGB", (8, 6), (20 * n, 3, 7)), "text": text} for n, text in enumerate(captions())
    ],
    "dataset": dataset,
    "iterable": lambda: dataset().to_iterable_dataset(),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_each_library(kind):
    corpus = open_data(TABLES[kind]())
    assert texts(corpus) == captions()
    assert corpus[3]["image"].getpixel((0, 0)) == (60, 3, 7)
    assert sum(map(len, corpus.splits.values())) == 12


def test_relative_paths_and_named_columns(tmp_path):
    names = written_images(tmp_path)
    rows = [{"a": name, "b": f"about {name}", "c": f"not {name}"} for name in names]
    corpus = from_table(rows, root=tmp_path, image="a", text="b")
    assert texts(corpus, "b") == [f"about {name}" for name in names]
    assert corpus[3]["a"].size == (8, 6)


def test_a_dataset_that_was_selected_and_shuffled():
    chosen = dataset().select([7, 3, 5]).shuffle(seed=1)
    assert texts(open_data(chosen)) == chosen["text"][:]


def test_splits_by_name():
    whole = dataset()
    parts = {"train": whole.select(range(6)), "val": whole.select(range(6, 9)), "test": whole.select(range(9, 12))}
    from datasets import DatasetDict

    for data in (parts, DatasetDict(parts), {name: part.to_pandas() for name, part in parts.items()}):
        corpus = open_data(data)
        assert {name: rows.tolist() for name, rows in corpus.splits.items()} == {
            "train": [*range(6)],
            "validation": [6, 7, 8],
            "test": [9, 10, 11],
        }
        assert texts(corpus) == captions()


def test_mixed_values_of_a_frame():
    frame = pd.DataFrame(
        {"image": [png(n) for n in range(4)], "text": ["one", 2, None, float("nan")], "x": [1, 2.5, "a", []]}
    )
    corpus = open_data(frame)
    assert [corpus.raw(row, "text") for row in range(4)] == ["one", "2", None, None]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "A int is no table that is read"),
        ([], "no rows"),
        ([1, 2], "A list of dicts is needed; the list has a int"),
        (pd.DataFrame(), "no rows"),
        ({"image": [b"x"], "text": ["a", "b"]}, "differ in length: image 1, text 2"),
        ((row for row in ()), "A generator is no table"),
        (pa.table({"number": [1.5]}), "The columns are"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_table_is_a_sentence(data, said):
    with pytest.raises(UserError, match=f"(?i){said}"):
        open_data(data)


def test_train_and_evaluate_take_tables_and_paths(tmp_path):
    recipe = pm.recipes.clip.Recipe(batch_size=4)
    rows = [{"image": png(n % 12), "text": f"thing {n}"} for n in range(40)]
    run = pm.train(recipe, rows, pm.Budget(steps=1), out=tmp_path / "run", runtime=QUIET)
    assert pm.evaluate(run, pd.DataFrame(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert pm.evaluate(run, tmp_path / "rows.parquet")
    compared = pm.compare([recipe], rows, pm.Budget(steps=1), seeds=1)
    assert len(compared.trials) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    with pytest.raises(UserError, match=r"a table in memory, which is not there any more; name the data with --data"):
        reopen(record["corpus"])


# save_to_disk


def test_saved_dataset_dict(tmp_path):
    corpus = from_path(saved_dataset(tmp_path))
    assert {name: rows.tolist() for name, rows in corpus.splits.items()} == {
        "train": [*range(8)],
        "validation": [8, 9, 10, 11],
    }
    assert texts(corpus) == captions()
    assert corpus.columns["label"].names == ("cat", "dog")
    assert (corpus.raw(1, "label"), corpus.label) == ("dog", "label")


def test_saved_dataset_and_a_damaged_one(tmp_path):
    dataset().save_to_disk(str(tmp_path / "one"))
    assert texts(from_path(tmp_path / "one")) == captions()
    (file,) = (tmp_path / "one").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read as a folder of save_to_disk"):
        from_path(tmp_path / "one")


# Hub


def hub_folder(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(
        [{"image": {"bytes": row["image"], "path": None}, "text": row["text"]} for row in records()]
    )
    pq.write_table(table.slice(0, 8), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(8), folder / "data" / "validation-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_in_the_layout_of_the_hub(stream, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    corpus = from_path(f"hf:{hub_folder(tmp_path / 'set')}", stream=stream)
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 8, "validation": 4}
    assert texts(corpus) == captions()
    assert corpus[3]["image"].size == (8, 6)
    assert texts(reopen(json.loads(json.dumps(dict(corpus.choices))))) == captions()


def test_names_of_the_hub(monkeypatch):
    assert parse_name("hf:me/set") == HubName("me/set")
    assert parse_name("hf:set:config@v1.0") == HubName("set", "config", "v1.0")
    assert parse_name("hf:me/set@main") == HubName("me/set", None, "main")
    for wrong in ("hf:", "hf:a/b/c/d", "hf:a:b:c"):
        with pytest.raises(UserError, match="names no data set of the hub; write hf:OWNER/NAME"):
            from_path(wrong)
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        return {"train": dataset(), "test": dataset()}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    corpus = pm.corpora.from_path("hf:me/set:small@v2")
    assert asked == [(("me/set", "small"), {"revision": "v2"})]
    assert (corpus.name, dict(corpus.choices)["data"]) == ("set", "hf:me/set:small@v2")
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 12, "test": 12}


def test_no_network_or_an_unknown_name_is_a_sentence(monkeypatch):
    with pytest.raises(UserError, match=r"hf:me/nothing-there cannot be loaded: .*Check the name, and the network"):
        from_path("hf:me/nothing-there")
    for url in ("hf://datasets/me/nothing-there", "hf://datasets/me/nothing-there/data/*.parquet"):
        with pytest.raises(UserError, match=r"cannot be opened|no .parquet or .tar shard"):
            from_path(url)
    with pytest.raises(UserError, match=r"cannot be opened|no .parquet or .tar shard"):
        from_path("hf:me/nothing-there", stream=True)

    def load_dataset(*_, **__):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"hf:me/set needs a config, hf:me/set:CONFIG: .*\['a', 'b'\]"):
        from_path("hf:me/set")


def test_streaming_the_parquet_files_of_the_hub(monkeypatch):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr("polymodal.corpora.hub.HUB", "memory://hub/")
    for config in ("small", "large"):
        for split, count in (("train", 8), ("test", 4)):
            buffer = pa.BufferOutputStream()
            pq.write_table(pa.table({"text": [f"{config} {n}" for n in range(count)]}), buffer)
            place = f"/hub/me/set@refs%2Fconvert%2Fparquet/{config}/{split}/0000.parquet"
            memory.pipe(place, buffer.getvalue().to_pybytes())
    try:
        corpus = from_path("hf:me/set:small", stream=True)
        assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 8, "test": 4}
        assert texts(reopen(corpus.choices))[9] == "small 1"
        with pytest.raises(UserError, match="hf:me/set needs a config; choose one of: large, small"):
            from_path("hf:me/set", stream=True)
        memory.rm("/hub/me/set@refs%2Fconvert%2Fparquet/large", recursive=True)
        assert len(from_path("hf:me/set", stream=True)) == 12
    finally:
        memory.rm("/hub", recursive=True)


# URLs


def test_files_of_rows_at_a_url_are_fetched_once(tmp_path):
    memory = fsspec.filesystem("memory")
    lines = [json.dumps({"text": text, "label": "ab"[n % 2]}) for n, text in enumerate(captions())]
    memory.pipe("/rows/0.jsonl", "\n".join(lines[:6]).encode())
    memory.pipe("/rows/1.jsonl", "\n".join(lines[6:]).encode())
    corpus = from_path("memory://rows/*.jsonl")
    assert texts(corpus) == captions()
    assert texts(reopen(json.loads(json.dumps(dict(corpus.choices))))) == captions()
    assert len(from_path("memory://rows/1.jsonl")) == 6
    memory.pipe("/rows/1.jsonl", "\n".join(lines[6:9]).encode())
    assert len(from_path("memory://rows/1.jsonl")) == 3, "a file that changed is fetched anew"
    memory.rm("/rows", recursive=True)
    with pytest.raises(UserError, match=r"There is no file at memory://rows|memory://rows/1.jsonl cannot be fetched"):
        from_path("memory://rows/1.jsonl")
    with pytest.raises(UserError, match=r"nosuch://rows/1.csv cannot be fetched"):
        from_path("nosuch://rows/1.csv")


def test_csv_over_http(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "a b.csv").write_text("text,label\n" + "".join(f"thing {n},{n % 2}\n" for n in range(12)))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        pq.write_table(pa.Table.from_pylist(records()), tmp_path / "0.parquet", row_group_size=4)
        assert texts(from_path(f"{url}/0.parquet")) == captions()
        assert len(from_path(f"{url}/a%20b.csv")) == 12
        with pytest.raises(UserError, match=r"missing\.csv cannot be fetched"):
            from_path(f"{url}/missing.csv")
    finally:
        server.shutdown()
        server.server_close()
