"""The page, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import uvicorn
from PIL import Image as PILImage

from polymodal import corpora
from polymodal.cli import using
from polymodal.encoders.image import ImageEncoderConfig
from polymodal.errors import UserError
from polymodal.modalities.image import encoded
from polymodal.recipes.dual_encoders import clip
from polymodal.recipes.optimization import gradient_harmonization
from polymodal.serving.grounding import GroundedBox
from polymodal.serving.index import Index, embedded_query
from polymodal.serving.index_build import build_index
from polymodal.serving.page import boxes_tab, chat_tab, page
from polymodal.serving.page.classes_tab import label_names
from polymodal.serving.server import create_app
from polymodal.training import train
from polymodal.types import Budget

# A tower without convolutions tells images of one colour apart before it has learned anything.
PLAIN = clip.Recipe(image=ImageEncoderConfig(), batch_size=16)

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver")


def png(color=(200, 30, 30)) -> bytes:
    return encoded(PILImage.new("RGB", (48, 48), color))


@contextmanager
def page_of(folder, run, index, *more):
    """The address of the page of a run and its index."""
    command = [sys.executable, "-m", "polymodal", "serve", str(folder / run), "--port", "0", "--page"]
    command += ["--index", str(folder / index), *more]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        port = re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline())[1]
        yield f"http://127.0.0.1:{port}/page"
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page where two runs answer, their first index, and a folder."""
    folder = tmp_path_factory.mktemp("page")
    rows = [{"id": f"k{n}", "image": png((n * 4, 90, 200 - n)), "caption": f"plate {n}"} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "plates.parquet")
    corpus = corpora.from_path(folder / "plates.parquet")
    for seed, name in enumerate(("first", "second")):
        run = train(PLAIN, corpus, Budget(steps=2), out=folder / name, seed=seed)
        build_index(run, corpus, str(folder / f"{name}_index"))
    with page_of(folder, "first", "first_index", "--extra-index", str(folder / "second_index")) as address:
        yield address, Index(str(folder / "first_index")), folder


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def find(browser, selector: str, seconds: float = 40):
    """The elements, as soon as there are any."""
    return wait(browser, selector, lambda found: found, seconds)


def said(browser, selector: str) -> str:
    """The text of the first element, as soon as it has one."""
    return wait(browser, selector, lambda found: found and found[0].text, 40)[0].text


def wait(browser, selector: str, ready, seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if ready(found := browser.find_elements("css selector", selector)):
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {selector}: {browser.find_element('tag name', 'body').text}")


def open_page(browser, address: str, width: int = 1200) -> None:
    browser.set_window_size(width, 900)
    browser.get(address)
    find(browser, "#words textarea, #words input")


def test_words_find_what_the_index_finds(browser, served):
    address, index, _ = served
    open_page(browser, address)
    (words,) = find(browser, "#words textarea, #words input")
    words.send_keys("plate 7\n")
    find(browser, ".hits figcaption")
    captions = [caption.text for caption in find(browser, ".hits figcaption")]
    best = index.find(embedded_query(index.run(), "plate 7"), 12)
    assert captions[0].split() == [f"{best[0].similarity:.3f}", *best[0].caption.split(), best[0].key]
    assert len(captions) == 24, "twelve of each run"


def test_a_image_finds_itself_and_a_broken_one_a_sentence(browser, served):
    address, _, folder = served
    (folder / "query.png").write_bytes(png((20, 90, 195)))
    (folder / "broken.png").write_bytes(b"this is no image")
    for file, selector in (("query.png", ".hits figcaption"), ("broken.png", ".problem p")):
        open_page(browser, address)
        find(browser, "#more button")[0].click()
        find(browser, "#image input[type=file]")[0].send_keys(str(folder / file))
        find(browser, "#image .file-preview, #image table")
        browser.find_element("css selector", "button.primary").click()
        text = said(browser, selector)
        assert ("plate 5" if file == "query.png" else "no format") in text


def test_a_good_answer_removes_the_sentence_of_an_error(browser, served):
    open_page(browser, served[0])
    browser.find_element("css selector", "button.primary").click()
    assert "one of them" in said(browser, ".problem p")
    find(browser, "#words textarea, #words input")[0].send_keys("plate 7\n")
    find(browser, ".hits figcaption")
    assert browser.find_elements("css selector", ".problem p") == []


def test_classes_of_every_run_are_side_by_side(browser, served):
    address, _, folder = served
    (folder / "class.png").write_bytes(png((20, 90, 195)))
    open_page(browser, address)
    open_tab(browser, "Classes")
    find(browser, "#classified input[type=file]")[0].send_keys(str(folder / "class.png"))
    find(browser, "#classified .file-preview, #classified table")
    find(browser, "#labels textarea")[0].send_keys("plate, spoon")
    click(browser, "Classify")
    wait(browser, ".classes", lambda boxes: len(boxes) == 2 and all("spoon" in box.text for box in boxes), 40)
    assert label_names("a, b") == label_names("a\nb") == ["a", "b"]


def open_tab(browser, title: str) -> None:
    wait(browser, "button[role=tab]", lambda tabs: any(tab.text == title for tab in tabs), 40)
    next(tab for tab in browser.find_elements("css selector", "button[role=tab]") if tab.text == title).click()


def click(browser, text: str) -> None:
    next(one for one in browser.find_elements("css selector", "button") if one.text == text).click()


class _SlowWriter:
    """Stands for a run that writes: a layer, a token, again and again until it is stopped."""

    def __init__(self):
        self.layer, self.tokens = torch.nn.Linear(2, 2), 0

    def __call__(self, run, image, question, tell) -> str:
        while self.tokens < 400:
            self.layer(torch.zeros(1, 2))
            self.tokens += 1
            tell(f"{question} <b>{self.tokens}</b>")
            time.sleep(0.05)
        return "the end"


@pytest.fixture(scope="module")
def trying(served):
    """The address of a page with the tabs Chat and Boxes, whose answers are invented, and the writer of the chat."""
    run, writer = Index(str(served[2] / "first_index")).run(), _SlowWriter()
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setattr(page, "TABS", tuple(tab._replace(runs=list) for tab in (chat_tab.tab, boxes_tab.tab)))
        patch.setattr(chat_tab, "stream_answer", writer)
        boxes = [GroundedBox("a plate", (4, 4, 40, 40), 0.75)]
        patch.setattr(boxes_tab, "ground", lambda run, image, texts: (image, boxes))
        server = uvicorn.Server(uvicorn.Config(create_app(run, page=True), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/page", writer, served[2]
        server.should_exit = True
        thread.join(30)


def test_a_chat_grows_until_it_is_stopped(browser, trying):
    address, writer, folder = trying
    (folder / "talk.png").write_bytes(png())
    browser.set_window_size(1200, 900)
    browser.get(address)
    find(browser, "#asked input[type=file]")[0].send_keys(str(folder / "talk.png"))
    find(browser, "#asked .file-preview, #asked table")
    find(browser, "#question textarea, #question input")[0].send_keys("What?\n")
    wait(browser, ".turn .answer", lambda turns: turns and "What? <b>" in turns[0].text, 40)
    assert writer.tokens < 300, "the answer is shown while it is written"
    find(browser, "#stop")[0].click()
    time.sleep(1.0)
    tokens = writer.tokens
    time.sleep(0.5)
    assert writer.tokens == tokens < 300
    assert "What?" in said(browser, ".turn .question")


def test_boxes_are_drawn(browser, trying):
    address, _, folder = trying
    (folder / "boxes.png").write_bytes(png())
    browser.get(address)
    open_tab(browser, "Boxes")
    find(browser, "#grounded input[type=file]")[0].send_keys(str(folder / "boxes.png"))
    find(browser, "#grounded .file-preview, #grounded table")
    find(browser, "#texts textarea")[0].send_keys("a plate")
    click(browser, "Find")
    (image,) = find(browser, ".boxes img")
    assert browser.execute_script("return arguments[0].naturalWidth", image) == 480
    assert "0.75" in said(browser, ".boxes table")


def test_it_fits_on_a_telephone(browser, served):
    open_page(browser, served[0], width=400)
    (words,) = find(browser, "#words textarea, #words input")
    words.send_keys("plate 7\n")
    find(browser, ".hits figcaption")
    wide, room = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= room
    for gallery in browser.find_elements("css selector", ".hits"):
        assert browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", gallery) <= 1


@pytest.mark.corpora
def test_a_sound_finds_what_the_index_finds_by_it(browser, tmp_path):
    every = corpora.clips()
    few = {name: rows[:32] for name, rows in every.splits.items()}
    corpus = every.with_splits(few)
    run = train(gradient_harmonization.Recipe(batch_size=16), corpus, Budget(steps=4), out=tmp_path / "run")
    build_index(run, corpus, str(tmp_path / "index"))
    (tmp_path / "sound.ogg").write_bytes(every.raw(int(few["train"][0]), "sound"))
    best = Index(str(tmp_path / "index")).find(embedded_query(run, sound=tmp_path / "sound.ogg"), 12)
    with page_of(tmp_path, "run", "index") as address:
        open_page(browser, address)
        find(browser, "#more button")[0].click()
        find(browser, "#sound input[type=file]")[0].send_keys(str(tmp_path / "sound.ogg"))
        find(browser, "#sound .file-preview, #sound table")
        browser.find_element("css selector", "button.primary").click()
        find(browser, ".hits figcaption")
        captions = [caption.text for caption in find(browser, ".hits figcaption")]
    assert captions[0].split() == [f"{best[0].similarity:.3f}", *best[0].caption.split(), best[0].key]
    assert len(captions) == 12


def test_a_free_port_is_chosen_where_the_default_is_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with using.listener_at("127.0.0.1", port, default=port) as chosen:
            assert chosen.getsockname()[1] != port
        with pytest.raises(UserError, match="choose another --port"):
            using.listener_at("127.0.0.1", port, default=port + 1)
