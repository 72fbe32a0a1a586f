"""The HTTP service: right answers to many at once, one shape of errors, limits, and a clean end."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders import clip, improved_clip, siglip
from polymodal.serving.batching import BoundedThreads, DeadlineExceeded, MicroBatcher, QueueFull
from polymodal.serving.index import Index
from polymodal.serving.index_build import build_index
from polymodal.serving.limits import Limits
from polymodal.serving.server import create_app
from polymodal.training import train
from polymodal.types import Budget

# A tower without convolutions tells images of one colour apart before it has learned anything.
PLAIN = clip.Recipe(image=ImageEncoderConfig(), batch_size=16)


def png(color=(200, 20, 20), size=(32, 32)) -> bytes:
    return encoded(PILImage.new("RGB", size, color))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run, and an index that it has made."""
    folder = tmp_path_factory.mktemp("served")
    rows = [{"id": f"k{n}", "image": png((n * 3, 90, 200 - n)), "caption": f"plate {n}"} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "plates.parquet")
    corpus = corpora.from_path(folder / "plates.parquet")
    run = train(PLAIN, corpus, Budget(steps=2), out=folder / "run")
    build_index(run, corpus, str(folder / "index"))
    return run, Index(str(folder / "index"))


@pytest.fixture(scope="module")
def client(served):
    with TestClient(create_app(*served)) as client:
        yield client


def test_vectors_scores_and_classes_are_those_of_the_run(client, served):
    run, _ = served
    texts, images = ["a red plate", "plate 7"], [png((10, 200, 30)), png()]
    found = client.post("/embed", json={"text": texts, "image": [b64(p) for p in images]}).json()
    own = {name: vectors.numpy() for name, vectors in run.embed(text=texts, image=images).items()}
    for name in ("text", "image"):
        np.testing.assert_allclose(found[name], own[name], atol=1e-5)
    asked = {"text": texts, "image": [b64(p) for p in images]}
    similarity = np.array(client.post("/score", json=asked).json()["similarity"])
    np.testing.assert_allclose(similarity, own["text"] @ own["image"].T, atol=1e-5)
    asked = {"image": [b64(p) for p in images], "labels": ["red", "plate 7"], "template": "a {} plate"}
    likely = client.post("/classify", json=asked).json()["probabilities"]
    classes = run.embed(text=["a red plate", "a plate 7 plate"])["text"].numpy()
    logits = float(run.model.logit_scale().detach()) * own["image"] @ classes.T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose([[row["red"], row["plate 7"]] for row in likely], expected, atol=1e-4)


@pytest.mark.parametrize("case", ["siglip", "improved_clip"])
def test_classes_have_the_probabilities_of_the_method(case, tmp_path, small_emoji):
    towers = {"image": PLAIN.image, "batch_size": 16}
    if case == "siglip":
        recipe = siglip.Recipe(**towers)
    else:
        recipe = improved_clip.Recipe(**towers, eval_projector="h", projector_hidden_dim=16)
    run = train(recipe, small_emoji, Budget(steps=2))
    images, labels = [png((10, 200, 30)), png()], ["red", "green"]
    with TestClient(create_app(run, None)) as client:
        found = client.post("/classify", json={"image": [b64(p) for p in images], "labels": labels}).json()
    own, model = run.embed(text=labels, image=images), run.model
    similarity = own["image"] @ own["text"].T
    if case == "siglip":  # each label by itself, as in transformers' pipeline of zero-shot image classification
        expected = torch.sigmoid(model.logit_scale() * similarity + model.logit_bias)
    else:
        expected = (model.local_logit_scale() * similarity).softmax(1)
    rows = torch.tensor([[row[label] for label in labels] for row in found["probabilities"]])
    torch.testing.assert_close(rows, expected.detach(), atol=1e-5, rtol=1e-4)


def test_search_and_the_shape_of_openai(client, served):
    run, index = served
    image = index.find(run.embed(text=["plate 5"])["text"][0].numpy(), 1)[0]
    results = client.post("/search", json={"text": "plate 5", "top": 3, "thumbnails": True}).json()["results"]
    assert len(results) == 3
    assert results[0]["key"] == image.key
    assert PILImage.open(io.BytesIO(base64.b64decode(results[0]["thumbnail"]))).size == (32, 32)
    (same, *_) = client.post("/search", json={"image": b64(png((15, 90, 195)))}).json()["results"]
    assert same["key"] == "k5"
    vectors = run.embed(text=["a", "b"])["text"].numpy()
    asked = {"input": ["a", "b"], "model": "any"}
    answer = client.post("/v1/embeddings", json=asked).json()
    assert [item["index"] for item in answer["data"]] == [0, 1]
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], vectors, atol=1e-5)
    packed = client.post("/v1/embeddings", json=asked | {"encoding_format": "base64"}).json()["data"][1]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vectors[1], atol=1e-5)
    assert answer["usage"]["prompt_tokens"] > 0


def test_the_examples_of_the_documentation_run(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert "/generate" not in paths, "CLIP generates nothing"
    tried = 0
    for path, operations in paths.items():
        if "post" in operations:
            body = operations["post"]["requestBody"]["content"]["application/json"]
            for example in body["examples"].values():
                answer = client.post(path, json=example["value"])
                assert answer.status_code == 200, (path, answer.json())
                tried += 1
    assert tried == 5


def test_everybody_gets_the_answer_to_what_they_asked(client, served):
    run, _ = served
    texts = [f"plate {n}" for n in range(200)]
    expected = run.embed(text=texts)["text"].numpy()

    def ask(number: int) -> np.ndarray:
        answer = client.post("/embed", json={"text": [texts[number]]})
        if number % 20 == 3:
            assert client.post("/embed", json={"image": ["AAAA"]}).status_code == 400
        return np.array(answer.json()["text"][0])

    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(ask, range(200)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    sizes = client.get("/metrics").text
    count, total = (float(re.search(rf"polymodal_batch_size_{what} (\S+)", sizes)[1]) for what in ("count", "sum"))
    assert total / count > 1.2, "requests were computed together"


def bomb(side: int) -> bytes:
    """A few bytes that say they are a huge PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sound(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(8000 * seconds), np.float32), 8000, format="WAV")
    return file.getvalue()


REFUSED = {
    "no JSON": ("/embed", b"{", 400, "invalid_request"),
    "no list": ("/embed", {"text": "a"}, 400, "invalid_request"),
    "unknown field": ("/embed", {"txt": ["a"]}, 400, "invalid_request"),
    "nothing": ("/embed", {}, 400, "empty"),
    "empty text": ("/embed", {"text": [" "]}, 400, "empty"),
    "long text": ("/embed", {"text": ["a" * 10_001]}, 413, "too_long"),
    "many": ("/embed", {"text": ["a"] * 65}, 413, "too_many"),
    "no base64": ("/embed", {"image": ["!!"]}, 400, "invalid_request"),
    "a path": ("/embed", {"image": ["/etc/hostname"]}, 400, None),
    "a URL": ("/embed", {"image": ["http://localhost/x.png"]}, 400, "invalid_request"),
    "no image": ("/embed", {"image": [b64(b"hello")]}, 400, "unreadable"),
    "half an image": ("/embed", {"image": [b64(png(size=(300, 300))[:300])]}, 400, "unreadable"),
    "huge image": ("/embed", {"image": [b64(bomb(30_000))]}, 400, "unreadable"),
    "large image": ("/embed", {"image": [b64(bomb(8_000))]}, 413, "too_large"),
    "no sound": ("/embed", {"sound": [b64(b"hello")]}, 400, "unreadable"),
    "long sound": ("/embed", {"sound": [b64(sound(61))]}, 413, "too_long"),
    "a run without ears": ("/embed", {"sound": [b64(sound(1))]}, 400, "invalid_request"),
    "score of nothing": ("/score", {"text": ["a"]}, 400, "invalid_request"),
    "a label twice": ("/classify", {"image": [b64(png())], "labels": ["cat", "dog", "cat"]}, 400, "invalid_request"),
    "no labels": ("/classify", {"image": [b64(png())], "labels": []}, 400, "invalid_request"),
    "no place": ("/classify", {"image": [b64(png())], "labels": ["a"], "template": "a"}, 400, "invalid_request"),
    "bad condition": ("/search", {"text": "a", "where": "x ="}, 400, "invalid_request"),
    "two queries": ("/search", {"text": "a", "image": b64(png())}, 400, "invalid_request"),
    "top": ("/search", {"text": "a", "top": 0}, 400, "invalid_request"),
    "no place there": ("/nothing", {}, 404, "no_such_place"),
    "generates nothing": ("/generate", {"image": [b64(png())]}, 400, "invalid_request"),
}


REFUSED |= {
    "a program": ("/search", {"text": "a", "where": "repeat(key, 1000000) = ''"}, 400, "invalid_request"),
    "a large program": ("/search", {"text": "a", "where": "lpad(key, 100000000, 'b') = ''"}, 400, "invalid_request"),
    "a program of the vector": (
        "/search",
        {"text": "a", "where": "array_resize(vector, 1000000) IS NULL"},
        400,
        "invalid_request",
    ),
    "a number for a string": ("/search", {"text": "a", "where": "key < 1"}, 400, "invalid_request"),
    "a column that is not shown": ("/search", {"text": "a", "where": "vector IS NULL"}, 400, "invalid_request"),
    "no UTF-8": ("/search", b'{"text": "\xff\xfe"}', 400, "invalid_request"),
    "deep": ("/search", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "invalid_request"),
    "many digits": ("/search", b'{"text": "a", "top": ' + b"1" * 5000 + b"}", 400, "invalid_request"),
    "a huge number": ("/search", b'{"text": "a", "top": 1e999}', 400, "invalid_request"),
}
for _placeholder in ("$1", "?", ":x"):
    _body = {"text": "a", "where": f"{_placeholder} = 1"}
    REFUSED[f"the placeholder {_placeholder}"] = "/search", _body, 400, "invalid_request"
for _path, _body in {
    "/embed": {"text": ["a \ud800"]},
    "/classify": {"image": [b64(png())], "labels": ["\udfff"]},
    "/classify?template": {"image": [b64(png())], "labels": ["a"], "template": "\ud800 {}"},
    "/generate": {"image": [b64(png())], "question": "\ud800"},
    "/search": {"text": "a", "where": "key = '\ud800'"},
    "/search?text": {"text": "\ud800", "hybrid": True},
    "/search?unknown": {"text": "a", "\ud800": 1},
    "/v1/embeddings": {"input": "\ud800"},
    "/embed?image": {"image": ["\ud800"]},
}.items():
    REFUSED[f"half a pair, {_path}"] = _path, json.dumps(_body).encode(), 400, "invalid_request"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(client, name):
    path, body, status, code = REFUSED[name]
    if isinstance(body, bytes):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
    else:
        answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message"}
    assert code in (None, error["code"]), error
    assert error["message"][0].isupper() or ":" in error["message"] or "/" in error["message"]
    assert "Traceback" not in error["message"]


def test_keys_and_sizes(served):
    run, _ = served
    with TestClient(create_app(run, limits=Limits(body_bytes=1000), api_key="secret")) as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/embed", json={"text": ["a"]}).status_code == 401
        wrong = client.post("/embed", json={"text": ["a"]}, headers={"Authorization": "Bearer secreT"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "no_key")
        right = {"Authorization": "Bearer secret"}
        assert client.post("/embed", json={"text": ["a"]}, headers=right).status_code == 200
        assert client.get("/metrics").status_code == 401
        large = client.post("/embed", json={"text": ["a" * 2000]}, headers=right)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

        def chunks():
            for _ in range(30):
                yield b"a" * 100

        assert client.post("/embed", content=chunks(), headers=right).status_code == 413, "without a length, too"
        assert client.post("/search", json={"text": "a"}, headers=right).status_code == 404, "there is no index"
        told = client.get("/metrics", headers=right).text
        assert 'polymodal_requests_total{path="/embed",status="200"} 1.0' in told
        assert 'polymodal_requests_total{path="other",status="413"} 2.0' in told


def test_a_page_asks_for_the_key_itself(served):
    run, index = served
    with TestClient(create_app(run, index, page=True, extra_indexes=[served])) as client:
        assert "polymodal" in client.get("/page/").text
        assert client.post("/embed", json={"text": ["a"]}).status_code == 200
    with TestClient(create_app(run, index, page=True, api_key="secret")) as client:
        assert client.get("/page/config").status_code == 401
        assert client.post("/page/login", data={"username": "polymodal", "password": "wrong"}).status_code == 400
        assert client.post("/page/login", data={"username": "polymodal", "password": "secret"}).status_code == 200
        assert client.get("/page/config").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.text("key split='()ANDORLIKE%", max_size=40), st.text(max_size=20))
def test_no_condition_and_no_words_end_in_an_error_of_the_server(client, where, words):
    for asked in ({"text": words, "hybrid": True}, {"text": "a", "where": where}):
        answer = client.post("/search", content=json.dumps(asked), headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), (asked, answer.text)


def test_a_seed_has_63_bits(client):
    for seed in (2**63, -1):
        said = client.post("/generate", json={"words": ["a"], "seed": seed}).json()["error"]["message"]
        assert said.startswith("seed: ")


def test_conditions_of_clients_and_of_the_command_line(served, client):
    found = client.post("/search", json={"text": "a", "where": "key in ('k3', 'k5') AND NOT key LIKE '%5'"}).json()
    assert [hit["key"] for hit in found["results"]] == ["k3"]
    run, index = served
    query = run.embed(text=["a"])["text"][0].numpy()
    assert [hit.key for hit in index.find(query, 9, "upper(key) = 'K3'")] == ["k3"], "the engine's whole language"
    said = client.post("/search", json={"text": "a", "where": "upper(key) = 'K3'"}).json()["error"]["message"]
    assert re.search("at character 1, upper; there are key, split", said)


def test_a_search_has_a_deadline_and_a_bounded_queue(served, monkeypatch):
    run, index = served
    find, running, most, go = Index.find, [], [], threading.Event()

    def slow(self, *arguments):
        running.append(1)
        most.append(len(running))
        go.wait(20)
        time.sleep(0.5)
        running.pop()
        return find(self, *arguments)

    monkeypatch.setattr(Index, "find", slow)
    with TestClient(create_app(run, index, Limits(deadline=0.3))) as client:
        late = client.post("/search", json={"text": "a"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "too_late")
        go.set()
    with TestClient(create_app(run, index, queue_size=4)) as client, ThreadPoolExecutor(24) as threads:

        def ask(number: int) -> int:
            time.sleep(0.02 * number)  # so that what is embedded does not wait
            return client.post("/search", json={"text": "a"}).status_code

        statuses = list(threads.map(ask, range(24)))
    assert set(statuses) == {200, 429}
    assert max(most) == 4


def test_an_abandoned_call_keeps_its_thread_until_it_ends():
    async def scenario():
        threads, go = BoundedThreads(2, room=1), threading.Event()
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await threads.ask(go.wait, 0.01)
        waits = asyncio.create_task(threads.ask(lambda: "waited", 5))
        await asyncio.sleep(0.05)
        assert (waits.done(), threads.waiting) == (False, 1)
        with pytest.raises(QueueFull):
            await threads.ask(lambda: "too many", 5)
        waits.cancel()
        await asyncio.sleep(0.05)
        assert (waits.cancelled(), threads.waiting) == (True, 0), "a client that leaves while it waits makes room"
        go.set()
        await asyncio.sleep(0.1)
        assert await asyncio.gather(*(threads.ask(lambda n=n: n, 5) for n in range(2))) == [0, 1]
        with pytest.raises(ZeroDivisionError):
            await threads.ask(lambda: 1 / 0, 5)
        await threads.stop()

    asyncio.run(scenario())


def test_a_full_queue_and_a_late_answer(served, monkeypatch):
    run, _ = served
    quick = type(run).embed

    def slow(self, *arguments, **columns):
        time.sleep(0.4)
        return quick(self, *arguments, **columns)

    monkeypatch.setattr(type(run), "embed", slow)
    with TestClient(create_app(run, queue_size=2, max_batch_size=1)) as client, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda n: client.post("/embed", json={"text": ["a"]}), range(6)))
        busy = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert busy[0].headers["retry-after"] == "1"
        assert client.post("/embed", json={"text": ["a"]}).status_code == 200, "when the queue is empty again"
    with TestClient(create_app(run, limits=Limits(deadline=0.1))) as client:
        late = client.post("/embed", json={"text": ["a"]})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "too_late")


def test_the_batcher_spoils_no_answer_with_another(monkeypatch):
    sizes = []

    def compute(kind, values):
        sizes.append(len(values))
        if "bad" in values:
            raise ValueError("bad")
        return [f"{kind} {value}" for value in values]

    async def scenario():
        batcher = MicroBatcher(compute, max_batch_size=8, patience=0.02, queue_size=20)
        batcher.start()
        asked = [batcher.ask("a", [n, n + 100], 5) for n in range(3)]
        asked += [batcher.ask("a", ["bad"], 5), batcher.ask("b", ["x"], 5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[:3] == [[f"a {n}", f"a {n + 100}"] for n in range(3)]
        assert isinstance(answers[3], ValueError)
        assert answers[4] == ["b x"]
        assert max(sizes) > 2, "several requests were computed together"
        with pytest.raises(QueueFull):
            await batcher.ask("a", list(range(21)), 5)
        left = asyncio.create_task(batcher.ask("a", ["left"], 5))
        await asyncio.sleep(0)
        left.cancel()
        assert await batcher.ask("a", ["next"], 5) == ["a next"]
        with pytest.raises(DeadlineExceeded):
            await batcher.ask("a", ["late"], 0)
        await batcher.stop()
        assert batcher.waiting == 0

    asyncio.run(scenario())


def test_the_command_serves_until_it_is_told_to_stop(served, polymodal):
    run, index = served
    command = [sys.executable, "-m", "polymodal", "serve", str(run.directory), "--index", index.place, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        line = process.stdout.readline()
        port = int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
        for _ in range(100):
            try:
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").status == 200
                break
            except OSError:
                time.sleep(0.1)
        done = polymodal("serve", str(run.directory), "--port", str(port))
        assert (done.returncode, f"127.0.0.1:{port}" in done.stderr) == (2, True)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in err
    finally:
        process.kill()
    for arguments, said in (
        (("serve", "nowhere"), "is not a run"),
        (("serve", str(run.directory), "--index", "nowhere"), "is no index"),
        (("serve", str(run.directory), "--port", "99999999"), "--port is from 0 to 65535, not 99999999"),
        (("serve", str(run.directory), "--prt", "1"), "--port"),
    ):
        done = polymodal(*arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
