"""Requests that were made to read files of the server, to fill its memory, or to keep it busy."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fastapi.testclient import TestClient
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.errors import UserError
from polymodal.modalities.image import encoded
from polymodal.serving import request_body, request_decoder, routes
from polymodal.serving.batching import DeadlineExceeded, MicroBatcher
from polymodal.serving.http_errors import HTTPError
from polymodal.serving.index import Index
from polymodal.serving.index_build import build_index
from polymodal.serving.limits import Limits, label_texts, parsed
from polymodal.serving.page import blocks
from polymodal.serving.request_decoder import Held, RequestDecoder
from polymodal.serving.server import create_app
from polymodal.serving.service import Service
from polymodal.training import train
from polymodal.types import Budget
from test_server import PLAIN, b64, png, sound

SECRET = b"the secret of the server"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    rows = [{"id": f"k{n}", "image": png((n * 3, 90, 200 - n)), "caption": f"plate {n}"} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "plates.parquet")
    corpus = corpora.from_path(folder / "plates.parquet")
    run = train(PLAIN, corpus, Budget(steps=1), out=folder / "run")
    build_index(run, corpus, str(folder / "index"))
    return run, Index(str(folder / "index"))


@pytest.fixture(scope="module")
def client(served):
    with TestClient(create_app(*served)) as client:
        yield client


@pytest.fixture
def page(served, tmp_path, monkeypatch):
    """A client of a page that takes images and sounds, and the folder of its uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(routes.Service, "columns", ("image", "text", "sound"))
    with TestClient(create_app(*served, page=True)) as client:
        yield client, tmp_path / "uploads"


def ask_page(client, function: dict, values: list) -> dict:
    """What the page's function answers, as its browser would ask."""
    session = f"s{time.monotonic_ns()}"
    asked = {"data": values, "fn_index": function["id"], "session_hash": session, "trigger_id": None}
    joined = client.post("/page/gradio_api/queue/join", json=asked)
    assert joined.status_code == 200, joined.text
    told = client.get("/page/gradio_api/queue/data", params={"session_hash": session}).text
    messages = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    return next(message for message in messages if message["msg"] == "process_completed")


def functions_of(client) -> list[tuple[dict, list[dict]]]:
    config = client.get("/page/config").json()
    components = {component["id"]: component for component in config["components"]}
    functions = [function for function in config["dependencies"] if function["inputs"]]
    return [(function, [components[one] for one in function["inputs"]]) for function in functions]


def test_the_page_takes_no_file_of_the_server(page, tmp_path, caplog, capfd):
    client, uploads = page
    (tmp_path / "secret.svg").write_bytes(SECRET)
    taking = 0
    for function, inputs in functions_of(client):
        for place, component in enumerate(inputs):
            for path in (str(tmp_path / "secret.svg"), f"{uploads}/../secret.svg", "http://127.0.0.1:9/x.png"):
                file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "secret.svg"}
                for value in (file, [file], {"a": file}):
                    values = [None] * len(inputs)
                    values[place] = value
                    answer = ask_page(client, function, values)
                    assert not answer["success"], (component["type"], path)
                    assert "uploaded" in str(answer["output"]), answer
                    taking += component["type"] == "file"
        assert not any(SECRET in file.read_bytes() for file in uploads.rglob("*") if file.is_file())
    assert taking >= 3 * 3 * 3, "an image and a sound to search with, and an image to classify"
    for path in (tmp_path / "secret.svg", f"{uploads}/../secret.svg", "/etc/passwd"):
        assert client.get(f"/page/gradio_api/file={path}").status_code == 403
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_gradio_itself_refuses_files_of_the_server_too(page, tmp_path, monkeypatch):
    client, uploads = page
    (tmp_path / "secret.svg").write_bytes(SECRET)
    monkeypatch.setattr(blocks, "_uploads", lambda values: True)
    file = {"path": str(tmp_path / "secret.svg"), "meta": {"_type": "gradio.FileData"}}
    for function, inputs in functions_of(client):
        for place in (n for n, component in enumerate(inputs) if component["type"] == "file"):
            values = [None] * len(inputs)
            values[place] = file
            answer = ask_page(client, function, values)
            assert "cannot read what was sent" in str(answer["output"]), answer
    assert not any(SECRET in file.read_bytes() for file in uploads.rglob("*") if file.is_file())


def upload(client, name: str, content: bytes) -> dict:
    (path,) = client.post("/page/gradio_api/upload", files={"files": (name, content)}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": name}


def test_the_page_answers_an_upload_and_logs_a_broken_one_in_a_line(page, caplog, capfd):
    client, _ = page
    found = 0
    for function, inputs in functions_of(client):
        place = next(n for n, component in enumerate(inputs) if component["type"] == "file")
        usual = {"textbox": "", "checkbox": False, "slider": 3, "file": None}
        values = [usual[component["type"]] for component in inputs]
        if len(inputs) == 3:
            values[1:] = ["red\nblue", "a {}"]
        values[place] = upload(client, "plate.png", png((15, 90, 195)))
        answer = ask_page(client, function, values)
        assert answer["success"], answer
        found += "plate 5" in json.dumps(answer["output"]) or "blue" in json.dumps(answer["output"])
        capfd.readouterr()
        caplog.clear()
        values[place] = upload(client, "broken.png", b"this is no image")
        answer = ask_page(client, function, values)
        assert "no format" in str(answer["output"])
        written = capfd.readouterr().err
        assert "Traceback" not in written + caplog.text
        assert len([record for record in caplog.records if "page" in record.getMessage()]) == 1
    assert found == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/page/gradio_api/proxy=http://127.0.0.1:1/", 404),
        ("/page/gradio_api/file=http://127.0.0.1:1/x.png", 404),
        ("/page/gradio_api/file%3Dhttp://127.0.0.1:1/x.png", 404),
        ("/page//gradio_api/proxy=http://127.0.0.1:1/", 404),
        ("/page/gradio_api/run/search", 404),
        ("/page/gradio_api/call/search", 404),
        ("/page/gradio_api/component_server", 404),
        ("/page/gradio_api/process_recording", 404),
        ("/page/gradio_api/openapi.json", 404),
        ("/page/monitoring", 404),
        ("/pages", 404),
        ("/page/gradio_api/file=/etc/passwd", 403),
        ("/page/gradio_api/info", 200),
        ("/page/config", 200),
        ("/page/theme.css", 200),
    ],
)
def test_of_the_page_s_server_only_what_the_page_needs(served, path, status):
    with TestClient(create_app(*served, page=True)) as client:
        assert client.get(path).status_code == status
        if status == 404:
            assert client.post(path, json={}).status_code == 404


def test_what_is_asked_on_the_page_is_small(served):
    with TestClient(create_app(*served, page=True)) as client:
        numbers = b'{"data": [' + b"1," * 600_000 + b"1]}"
        answer = client.post("/page/gradio_api/queue/join", content=numbers, headers={"content-type": "text/json"})
        assert answer.status_code == 413


# Bodies that are small for what they become.


@pytest.mark.parametrize("element", [b"1", b"[]", b"{}", b'""', b"null", b"[[]]", b'{"a":1}'])
def test_many_values_are_refused_before_they_are_built(element):
    body = b'{"text": [' + b",".join([element] * 2_000_000) + b"]}"
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(HTTPError) as refused:
        parsed(body, Limits())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert refused.value.status == 413
    assert time.perf_counter() - begin < 2


def test_of_many_wrong_values_the_first_is_named(client):
    numbers = {"text": [1] * 60}
    answer = client.post("/embed", json=numbers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "text.0: Input should be a valid string.")
    assert client.post("/embed", json={"text": [1] * 100_000}).status_code == 413
    assert client.post("/embed", json={f"x{n}": 1 for n in range(100)}).status_code == 400
    assert client.post("/embed", json=[1, 2]).status_code == 400
    nested = b"[" * 10_000 + b"]" * 10_000
    answer = client.post("/embed", content=nested, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_body_is_parsed_outside_of_the_event_loop(client, monkeypatch):
    threads = set()

    def noted(body, limits, own=parsed):
        threads.add(threading.current_thread())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return own(body, limits)

    monkeypatch.setattr(request_body, "parsed", noted)
    assert client.post("/embed", json={"text": ["a"]}).status_code == 200
    assert len(threads) == 1


def test_every_text_has_a_bounded_length(client):
    long, image = "a" * 10_001, b64(png())
    for path, asked in (
        ("/generate", {"image": [image], "question": long}),
        ("/generate", {"words": [long]}),
        ("/search", {"text": long}),
        ("/classify", {"image": [image], "labels": [long]}),
        ("/classify", {"image": [image], "labels": ["a"], "template": "{}" + long}),
        ("/v1/embeddings", {"input": long}),
        ("/v1/embeddings", {"input": ["a"], "model": long}),
    ):
        answer = client.post(path, json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_long"), path
    many = {"text": ["a " * 50] * 3}
    with pytest.raises(HTTPError, match="texts of a request"):
        parsed(json.dumps(many).encode(), Limits(request_characters=250))


def test_labels_and_template_are_bounded_before_they_are_joined(client):
    image = b64(png())
    labels = client.post("/classify", json={"image": [image], "labels": ["a"] * 257})
    assert (labels.status_code, labels.json()["error"]["code"]) == (413, "too_many")
    template = "{}" * 4_000
    tracemalloc.start()
    for label, limits in (("b" * 4_000, Limits()), ("bb", Limits(request_characters=500_000))):
        with pytest.raises(HTTPError) as refused:
            label_texts([label] * 250, template, limits)
        assert refused.value.code == "too_long"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    asked = {"image": [image], "labels": ["b" * 4_000] * 20, "template": template}
    assert client.post("/classify", json=asked).status_code == 413
    right = label_texts(["red", "blue"], "a {} {}", Limits(characters=12, request_characters=20))
    assert right == ["a red red", "a blue blue"]
    asked = {"image": [image], "labels": [f"plate {n}" for n in range(100)], "template": "a {}"}
    (likely,) = client.post("/classify", json=asked).json()["probabilities"]
    assert len(likely) == 100
    assert sum(likely.values()) == pytest.approx(1, abs=1e-4)


def claimed(side: int) -> bytes:
    """A PNG of few bytes that decodes to side x side pixels of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_pixels_of_a_request_are_summed_before_any_is_decoded(served, monkeypatch):
    decoded = []
    monkeypatch.setattr(request_decoder, "to_rgb", lambda image: decoded.append(image) or image.convert("RGB"))
    limits = Limits(pixels=1_000_000, request_pixels=2_000_000)
    with TestClient(create_app(served[0], limits=limits)) as client:
        answer = client.post("/embed", json={"image": [b64(claimed(800))] * 4})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert "together" in answer.json()["error"]["message"]
        assert not decoded
        assert client.post("/embed", json={"image": [b64(claimed(800))] * 3}).status_code == 200
        assert len(decoded) == 3
    assert Limits().items * Limits().pixels > Limits().request_pixels


def test_images_of_all_requests_are_bounded_together(served, monkeypatch):
    run, _ = served
    held, most, quick = 0, 0, MicroBatcher.ask

    async def counted(self, kind, values, seconds):
        nonlocal held, most
        held += len(values)
        most = max(most, held)
        await asyncio.sleep(0.02)
        try:
            return await quick(self, kind, values, seconds)
        finally:
            held -= len(values)

    monkeypatch.setattr(MicroBatcher, "ask", counted)
    limits = Limits(request_pixels=2 * 100 * 100)  # two images of 100 x 100 at the same time
    image = b64(png(size=(100, 100)))
    with TestClient(create_app(run, limits=limits)) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: client.post("/embed", json={"image": [image]}), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == 2


def test_held_amounts_wait_in_order_and_come_back():
    async def scenario():
        held, order = Held(10), []

        async def one(name, amount, seconds=5.0):
            async with held.hold(amount, seconds):
                order.append(name)
                await asyncio.sleep(0.02)

        with pytest.raises(DeadlineExceeded):
            async with held.hold(10, 1):
                await one("late", 1, 0.01)
        assert held.free == 10
        await asyncio.gather(one("a", 6), one("b", 6), one("c", 4), one("huge", 1000))
        assert order == ["a", "b", "c", "huge"]
        assert held.free == 10
        async with held.hold(10, 1):
            left = asyncio.create_task(one("left", 5))
            after = asyncio.create_task(one("after", 5))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.sleep(0)
        await after
        assert order[-1] == "after"
        assert held.free == 10

    asyncio.run(scenario())


@pytest.mark.parametrize("container", ["EPS", "ICO", "PCX", "ICNS"])
def test_formats_that_run_programs_or_hide_their_size_are_not_read(client, container):
    shown = PILImage.new("RGB", (64, 64), "red")
    answer = client.post("/embed", json={"image": [b64(encoded(shown, container))]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unreadable")


@pytest.mark.parametrize("container", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_images_are_read(client, container):
    shown = PILImage.new("RGB", (64, 64), "red")
    assert client.post("/embed", json={"image": [b64(encoded(shown, container))]}).status_code == 200


# Sounds.


def wav(rate: int, channels: int = 1, samples: int = 16) -> bytes:
    data = bytes(2 * channels * samples)
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels, 2 * channels, 16)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.fixture
def deaf(monkeypatch):
    """A decoder, and what it decoded."""
    decoded = []
    monkeypatch.setattr(request_decoder.Audio, "decode", lambda self, file: decoded.append(file) or np.zeros(1600))
    return decoded


@pytest.mark.parametrize("rate", [999_983, 49_999_991, 384_001, 999])
def test_rates_that_no_sound_has_are_refused_by_the_header(deaf, rate):
    with pytest.raises(request_decoder.UnreadableExample, match="samples a second"):
        decode(Limits(), [wav(rate)])
    assert not deaf


def decode(limits, sounds, takes=("sound",)):
    async def scenario():
        decoder = RequestDecoder(limits)
        async with decoder.decoded({"sound": sounds}, time.monotonic() + 5, takes=takes) as decoded:
            assert decoder.held.free < decoder.held.size
            return decoded["sound"]

    return asyncio.run(scenario())


def test_sounds_are_bounded_one_by_one_and_together(deaf):
    with pytest.raises(request_decoder.UnreadableExample, match="channels"):
        decode(Limits(), [wav(16_000, channels=9)])
    with pytest.raises(HTTPError, match="together"):
        decode(Limits(request_seconds=2.5), [sound(1)] * 3)
    with pytest.raises(HTTPError, match="has at most 60 seconds"):
        decode(Limits(), [sound(61)])
    flat = io.BytesIO()
    soundfile.write(flat, np.zeros((32_000_000 // 8 + 8, 8), np.int16), 384_000, format="FLAC")
    with pytest.raises(HTTPError, match="samples"):
        decode(Limits(), [flat.getvalue()])
    with pytest.raises(UserError, match="takes image"):
        decode(Limits(), [sound(1)], takes=("image",))
    assert not deaf
    assert len(decode(Limits(request_seconds=3.5), [sound(1)] * 3)) == 3
    assert len(decode(Limits(), [wav(384_000), wav(44_100, 2), wav(1_000)])) == 3


def test_a_run_without_ears_decodes_no_sound(client, deaf):
    answer = client.post("/embed", json={"text": ["a"], "sound": [b64(sound(1))]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert not deaf


# Keys, and work that nobody waits for.


def test_an_empty_key_is_no_key(served, polymodal, monkeypatch):
    run, _ = served
    for key in ("", "  ", "\t"):
        with pytest.raises(UserError, match="key is empty"):
            create_app(run, api_key=key)
    done = polymodal("serve", str(run.directory), "--port", "0", "--api-key", "")
    assert (done.returncode, "key is empty" in done.stderr) == (2, True), done.stderr
    monkeypatch.setenv("POLYMODAL_API_KEY", " ")
    done = polymodal("serve", str(run.directory), "--port", "0")
    assert (done.returncode, "key is empty" in done.stderr) == (2, True), done.stderr


def test_calls_are_begun_one_by_one_and_only_while_somebody_waits():
    begun = []

    def compute(kind, values):
        answers = []
        for value in values:
            begun.append(value)
            time.sleep(0.1)
            if value == "bad":
                raise ValueError("bad")
            answers.append(value)
        return answers

    async def scenario():
        batcher = MicroBatcher(compute, max_batch_size=8, patience=0.05, alone=("call",))
        batcher.start()
        asked = [batcher.ask("call", [name], 5) for name in ("a", "bad", "b")]
        asked.append(batcher.ask("call", ["late"], 0.15))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[0] == ["a"]
        assert isinstance(answers[1], ValueError)
        assert answers[2] == ["b"]
        assert isinstance(answers[3], DeadlineExceeded)
        await batcher.stop()

    asyncio.run(scenario())
    assert begun == ["a", "bad", "b"], "each once, and the late one never"


def test_work_of_a_client_that_has_left_is_not_begun(served, monkeypatch):
    run, _ = served
    embedded, going, quick = [], threading.Event(), type(run).embed

    def slow(self, *arguments, **columns):
        embedded.extend(columns.get("text", []))
        going.wait(10)
        return quick(self, *arguments, **columns)

    monkeypatch.setattr(type(run), "embed", slow)
    app = create_app(run)

    async def asks(text: str, leaves: asyncio.Event) -> list:
        body, sent = json.dumps({"text": [text]}).encode(), []
        given = False

        async def receive():
            nonlocal given
            if given:
                await leaves.wait()
                return {"type": "http.disconnect"}
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed", "query_string": b""}
        scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("a", 1), "client": ("b", 2)}
        await app(scope, receive, send)
        return sent

    async def scenario():
        async with app.router.lifespan_context(app):
            stays, leaves = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(asks("first", stays))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(asks("second", leaves))
            third = asyncio.create_task(asks("third", stays))
            await asyncio.sleep(0.2)
            leaves.set()
            assert await second == [], "nothing is sent to who has left"
            going.set()
            assert (await first)[0]["status"] == 200
            assert (await third)[0]["status"] == 200

    asyncio.run(scenario())
    assert embedded == ["first", "third"]


def test_bodies_of_all_requests_are_bounded_together():
    async def scenario():
        bodies = request_body.Bodies(Limits(body_bytes=100))

        async def receive():
            return {"type": "http.request", "body": b"a" * 90, "more_body": False}

        kept = [await bodies.receive(b"90", receive, 100) for _ in range(17)]
        with pytest.raises(request_body.QueueFull):
            await bodies.receive(b"90", receive, 100)
        bodies.release(kept.pop())
        kept.append(await bodies.receive(b"90", receive, 100))
        for body in kept:
            bodies.release(body)
        assert bodies.bytes == 0

    asyncio.run(scenario())


def test_a_slow_body_is_answered_once_and_the_connection_ends():
    async def scenario():
        bodies = request_body.Bodies(Limits(deadline=0.05))
        with pytest.raises(HTTPError) as refused:
            await bodies.receive(b"10", asyncio.Event().wait, 100)
        assert (refused.value.status, refused.value.headers["Connection"]) == (408, "close")

    asyncio.run(scenario())


def test_what_a_run_generates_is_answered_within_the_limits(served, monkeypatch):
    monkeypatch.setattr(routes, "CanGenerateImages", object)
    monkeypatch.setattr(routes, "CanGenerateText", object)
    blank = PILImage.new("RGB", (8, 8))
    monkeypatch.setattr(routes, "generate_images", lambda run, words, count, *rest: [[blank] * count] * 2)
    monkeypatch.setattr(routes, "answer_about", lambda run, images, question, *rest: [f"{question} {images[0].size}"])
    with TestClient(create_app(served[0])) as client:
        made = client.post("/generate", json={"words": ["a", "b"], "count": 3}).json()["images"]
        assert [len(row) for row in made] == [3, 3]
        said = client.post("/generate", json={"image": [b64(png())], "question": "What?"}).json()
        assert said == {"texts": ["What? (32, 32)"]}


class Writer(torch.nn.Module):
    """Generates tokens for 30 seconds, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tokens = torch.nn.Linear(2, 2), 0

    def generate(self) -> None:
        began = time.monotonic()
        while time.monotonic() < began + 30:
            self.layer(torch.zeros(1, 2))
            self.tokens += 1
            time.sleep(0.002)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_generation_ends_with_its_deadline_and_when_its_client_leaves(leaves):
    async def scenario():
        writer = Writer()
        batcher = MicroBatcher(lambda kind, calls: [call() for call in calls], alone=("call",))
        batcher.start()
        service = Service(None, None, Limits(), batcher)
        seconds = 30 if leaves else 0.3
        asked = asyncio.ensure_future(service.call(writer.generate, time.monotonic() + seconds))
        await asyncio.sleep(0.2)
        assert writer.tokens, "it has begun"
        if leaves:
            asked.cancel()
        with pytest.raises(asyncio.CancelledError if leaves else DeadlineExceeded):
            await asked
        # The next request is computed at once, by a module that no deadline ends any more.
        began = time.monotonic()
        after = await service.call(lambda: writer.layer(torch.zeros(1, 2)).shape, time.monotonic() + 20)
        assert (tuple(after), time.monotonic() - began < 5) == ((1, 2), True)
        tokens = writer.tokens
        await asyncio.sleep(0.1)
        assert writer.tokens == tokens
        await batcher.stop()

    asyncio.run(scenario())


def test_a_client_that_disconnects_ends_what_it_asked_for(served, monkeypatch):
    """Over HTTP: a generation of 30 seconds holds nobody up once its client has left."""
    writer = Writer()
    monkeypatch.setattr(routes, "CanGenerateText", object)
    monkeypatch.setattr(routes, "answer_about", lambda *given: writer.generate())
    app = create_app(served[0])

    async def scenario():
        body = json.dumps({"image": [b64(png())], "question": "What?"}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await asyncio.sleep(0.5)
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError("nobody is there to read an answer")

        scope = {"type": "http", "method": "POST", "path": "/generate", "raw_path": b"/generate", "root_path": ""}
        scope |= {"query_string": b"", "scheme": "http", "http_version": "1.1", "server": ("a", 1), "client": ("b", 2)}
        scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)
            await asyncio.sleep(0.1)
            tokens = writer.tokens
            await asyncio.sleep(0.2)
            assert 0 < tokens == writer.tokens

    began = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - began < 20


def files_below(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_uploads_are_deleted_when_the_server_stops(served, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with TestClient(create_app(*served, page=True)) as client:
        assert upload(client, "private.png", png())
        assert len(files_below(tmp_path / "uploads")) == 1
    assert files_below(tmp_path / "uploads") == []


def test_uploads_are_deleted_at_an_age(served, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr(blocks, "MAX_FILE_AGE", 1)
    monkeypatch.setattr(blocks, "DELETE_EVERY", 1)
    with TestClient(create_app(*served, page=True)) as client:
        assert upload(client, "private.png", png())
        until = time.monotonic() + 10
        while files_below(tmp_path / "uploads") and time.monotonic() < until:
            time.sleep(0.2)
        assert files_below(tmp_path / "uploads") == []
