"""Damaged files and hostile requests from random generators: an answer or one sentence, in bounded time and memory.

A failure names its seed; `POLYMODAL_FUZZ_SEED` begins at another one. `make test-slow` tries many more.
"""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic
from format_samples import SAMPLES
from mutations import VALUES, mutate
from polymodal import corpora
from polymodal.corpora.data_report import report_on
from polymodal.corpora.formats._json_head import json_head
from polymodal.corpora.sources import from_path
from polymodal.corpora.stream import from_shards
from polymodal.errors import UnreadableExample, UserError
from polymodal.serving.index import Index
from polymodal.serving.index_build import build_index
from polymodal.serving.limits import Limits
from polymodal.serving.server import create_app
from polymodal.training import train
from polymodal.types import Budget
from test_server import PLAIN, b64, png, sound

SEED = int(os.environ.get("POLYMODAL_FUZZ_SEED", "0"))
QUICK, SLOW = 3, 40  # damaged copies of a sample
SECONDS, BYTES = 20.0, 200 * 2**20  # bounds of one case, for samples of some kilobytes


def saved_corpus(folder: Path) -> Path:
    synthetic.corpus(folder / "corpus")
    return folder / "corpus"


SAMPLES_AND_SAVED = {**SAMPLES, "saved_corpus": saved_corpus}


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A function that returns the folder of a sample, and the path in it that is opened."""
    written: dict[str, tuple[Path, Path]] = {}

    def of(name: str) -> tuple[Path, Path]:
        if name not in written:
            folder = tmp_path_factory.mktemp(name)
            written[name] = folder, SAMPLES_AND_SAVED[name](folder).relative_to(folder)
        return written[name]

    return of


def damaged(folder: Path, name: str, seed: int, copy: Path) -> str:
    """Copy a sample and damage one of its files, of each suffix equally often; returns what was done."""
    rng = random.Random(f"{name}-{seed}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    by_suffix: dict[str, list[Path]] = {}
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        by_suffix.setdefault(file.suffix, []).append(file)
    file = rng.choice(by_suffix[rng.choice(sorted(by_suffix))])
    content, kinds = mutate(file.read_bytes(), rng)
    file.write_bytes(content)
    return f"seed {seed}: {kinds} in {file.name}"


def resident() -> int:
    """Return the largest number of bytes that this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def in_a_sentence(case: str) -> Iterator[None]:
    """Let pass what a user is told in one line; other errors fail, with the case."""
    try:
        yield
    except UserError as told:
        lines = str(told).splitlines()
        if len(lines) != 1 or "Traceback" in lines[0]:
            raise AssertionError(f"{case}: {told}") from told
    except Exception as error:
        raise AssertionError(case) from error


def look_at(path: Path) -> None:
    """What `polymodal data` and the first steps of a training read."""
    corpus = from_path(path)
    report_on(corpus, 100)
    for row in range(min(len(corpus), 12)):
        for column in corpus.columns:
            with suppress(UnreadableExample):
                corpus.value(row, column)


def check_one(name: str, sample: Any, copy: Path, seed: int) -> None:
    folder, given = sample(name)
    case = damaged(folder, name, seed, copy)
    begin = time.monotonic()
    before = resident()
    with in_a_sentence(f"{name}, {case}"):
        look_at(copy / given)
    assert resident() - before < BYTES, case
    assert time.monotonic() - begin < SECONDS, case


@pytest.mark.parametrize("name", [name for name in SAMPLES_AND_SAVED if name != "pdf"])  # whose sample takes seconds
def test_damaged_files_end_in_a_sentence(name, sample, tmp_path, capfd):
    for seed in range(SEED, SEED + QUICK):
        check_one(name, sample, tmp_path / "copy", seed)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES_AND_SAVED)
def test_many_damaged_files_end_in_a_sentence(name, sample, tmp_path, capfd):
    for seed in range(SEED + 1000, SEED + 1000 + SLOW):
        check_one(name, sample, tmp_path / "copy", seed)
    assert "Traceback" not in capfd.readouterr().err


def stream_one(name: str, sample: Any, copy: Path, seed: int) -> None:
    case = damaged(sample(name)[0], name, seed, copy)
    suffix = "*.parquet" if name == "parquet" else "*.tar"
    with in_a_sentence(f"{name} as a stream, {case}"):
        report_on(from_shards(sorted(map(str, copy.rglob(suffix)))), 100)


@pytest.mark.parametrize("name", ["parquet", "webdataset", "img2dataset"])
def test_damaged_shards_end_in_a_sentence(name, sample, tmp_path):
    for seed in range(SEED, SEED + 2 * QUICK):
        stream_one(name, sample, tmp_path / "copy", seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parquet", "webdataset", "img2dataset"])
def test_many_damaged_shards_end_in_a_sentence(name, sample, tmp_path):
    for seed in range(SEED + 1000, SEED + 1000 + 2 * SLOW):
        stream_one(name, sample, tmp_path / "copy", seed)


# What the generator broke at first, by name.


def test_brackets_that_never_close_take_time_in_proportion(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"images": ' + b"[\x00" * 30_000)
    begin = time.process_time()
    assert json_head(tmp_path / "a.json") is None
    assert time.process_time() - begin < 1.5, "9 s when the time grew with the square"


@pytest.mark.parametrize("file", ["a.jsonl", "a.json"])
def test_json_that_is_nested_too_deeply(file, tmp_path):
    (tmp_path / file).write_bytes(b"[" * 50_000 + b"\n{}")
    with pytest.raises(UserError, match=file):
        from_path(tmp_path)


def test_a_name_of_5000_characters_is_no_file(tmp_path, sample):
    for name, listing in {"librispeech": "100-7.trans.txt", "kaldi": "wav.scp"}.items():
        folder, given = sample(name)
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        for file in copy.rglob(listing):
            lines = file.read_text().splitlines()
            lines[0] = f"100-7-{'x' * 5000} {'y' * 5000}"
            file.write_text("\n".join(lines) + "\n")
        assert len(from_path(copy / given)) < 12


def test_a_line_of_csv_that_is_no_utf8_prints_no_traceback(tmp_path, capfd):
    (tmp_path / "a.csv").write_bytes(b"text,class\n" + b"a,b\n" * 30 + b"caf\xc3\xa9,b\ncaf\xe9,b,c\n")
    with pytest.raises(UserError, match=r"lines in UTF-8 .* and others that are not"):
        from_path(tmp_path / "a.csv")
    assert "Traceback" not in capfd.readouterr().err


def test_arrow_files_with_offsets_beyond_their_values(tmp_path):
    """Arrow would read other memory."""
    table, file = pa.table({"text": ["abcdefg", "hijklmn"]}), tmp_path / "a.arrow"
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
    whole, offsets = file.read_bytes(), struct.pack("<3i", 0, 7, 14)
    assert whole.count(offsets) == 1
    file.write_bytes(whole.replace(offsets, struct.pack("<3i", 0, 7, 2**30)))
    with pytest.raises(UserError, match=r"a\.arrow cannot be read as arrow"):
        from_path(tmp_path / "a.arrow")


# Requests.


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    rows = [{"id": f"k{n}", "image": png((n * 3, 90, 200 - n)), "caption": f"plate {n}"} for n in range(32)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "plates.parquet")
    corpus = corpora.from_path(folder / "plates.parquet")
    run = train(PLAIN, corpus, Budget(steps=1), out=folder / "run")
    build_index(run, corpus, str(folder / "index"))
    app = create_app(run, Index(str(folder / "index")), Limits(body_bytes=2**20, pixels=10**6))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


PATHS = ("/embed", "/score", "/classify", "/search", "/v1/embeddings", "/generate")
FIELDS = ("text", "image", "sound", "labels", "template", "top", "where", "hybrid", "thumbnails", "question", "words")
FIELDS += ("count", "steps", "seed", "input", "model", "encoding_format", "other", "\x00", "__class__")
VALID: dict[str, dict[str, Any]] = {
    "/embed": {"text": ["a plate"], "image": [b64(png())]},
    "/score": {"text": ["a plate"], "image": [b64(png())]},
    "/classify": {"image": [b64(png())], "labels": ["red", "blue"], "template": "a {}"},
    "/search": {"text": "plate 5", "top": 3, "where": "key in ('k3', 'k5') and not key like '%5'", "hybrid": True},
    "/v1/embeddings": {"input": ["a", "b"], "model": "x", "encoding_format": "base64"},
    "/generate": {"words": ["a"], "count": 2, "steps": 3, "seed": 1},
}
json_values = st.recursive(
    st.sampled_from(VALUES) | st.text(max_size=30) | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6)


def send(client: TestClient, path: str, body: bytes, kind: str = "application/json") -> None:
    begin = time.monotonic()
    answer = client.post(path, content=body, headers={"content-type": kind})
    case = (path, kind, body[:300])
    assert time.monotonic() - begin < SECONDS, case
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (case, answer.text)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"code", "message"}, case
        assert error["message"], case
        assert "Traceback" not in error["message"], case


def fuzz_requests(client: TestClient, examples: int) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(max_examples=examples, deadline=None, suppress_health_check=quiet, print_blob=True)

    @options
    @given(st.sampled_from(PATHS), bodies, st.booleans())
    def other_values(path: str, changes: dict[str, Any], valid: bool) -> None:
        body = VALID[path] | {name: value for name, value in changes.items() if name in VALID[path] or not valid}
        send(client, path, json.dumps(body if valid else changes).encode("utf-8", "surrogatepass"))

    @options
    @given(st.sampled_from(PATHS), st.integers(0, 2**32), st.sampled_from(["application/json", "text/plain", "", "é"]))
    def other_bytes(path: str, seed: int, kind: str) -> None:
        body, _ = mutate(json.dumps(VALID[path]).encode(), random.Random(seed))
        send(client, path, body, kind.encode("latin-1").decode("latin-1") if kind.isascii() else "application/json; x")

    @options
    @given(st.integers(0, 2**32), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "WAV"]))
    def other_media(seed: int, form: str) -> None:
        content, _ = mutate(MEDIA[form], random.Random(seed))
        column = "sound" if form == "WAV" else "image"
        send(client, "/embed", json.dumps({column: [base64.b64encode(content).decode()]}).encode())

    for test in (other_values, other_bytes, other_media):
        test()


def encoded_as(form: str) -> bytes:
    from PIL import Image as PILImage

    from polymodal.modalities.image import encoded

    return encoded(PILImage.radial_gradient("L").convert("RGB").resize((24, 24)), form)


MEDIA = {form: encoded_as(form) for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")} | {"WAV": sound(0.1)}


def test_requests_from_a_generator_end_in_an_answer(client, caplog, capfd):
    fuzz_requests(client, 25)
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    send(client, "/embed", json.dumps(VALID["/embed"]).encode())


@pytest.mark.slow
def test_many_requests_from_a_generator_end_in_an_answer(client, caplog, capfd):
    fuzz_requests(client, 1000)
    assert "Traceback" not in caplog.text + capfd.readouterr().err
