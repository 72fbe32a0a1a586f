"""The review page: in a real browser, by requests from elsewhere, and after a process that was killed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image as PILImage

from polymodal.corpora.about import About
from polymodal.corpora.corpus import Corpus
from polymodal.corpora.saved import save_corpus
from polymodal.curation.annotation import ANSWERS, Judgement, Judgements
from polymodal.curation.concepts import FURTHER, STATUSES
from polymodal.errors import UserError
from polymodal.modalities import Category, Image, Text
from polymodal.modalities.image import encoded
from polymodal.serving.review import create_review

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
NAMES = ("Karnak", "Koshari", "<b>Zar</b>")
HOST = {"base_url": "http://127.0.0.1:8010"}


def write_collected(folder: Path) -> None:
    """Write three pairs as `collect` does."""
    rows = [
        {"key": name, "split": "train", "image": encoded(PILImage.new("RGB", (240, 200), (60 * n, 90, 40))),
         "text": [{"text": text, "language": "en"} for text in (name, f"About {name}")], "concept": name,
         "category": "food", "culture": "cultural", "status": "unchecked", "source": "site", "license": "CC0",
         "background": "", "note": "also collected as: Zar" * (n == 1)}
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    tags = {"concept": Category(NAMES), "category": Category(("food",)), "culture": Category(("cultural",))}
    columns = {"image": Image(), "text": Text({"en": 1.0}), **tags, "status": Category(STATUSES)}
    about = About("collected", "pairs", "CC0", "images", ("image", "text"))
    made = {"counts": [], "concepts": {"names": [*NAMES], "sha256": "0"}}
    save_corpus(folder, about, columns, rows, types=FURTHER, made=lambda: made)


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    write_collected(tmp_path / "collected")
    return tmp_path / "collected"


def opened(folder: Path) -> tuple[Corpus, Judgements]:
    from polymodal.corpora.saved import open_saved

    return open_saved(folder), Judgements(folder / ANSWERS)


def answer(client: TestClient, number: int, name: str, authentic: bool = True, **more: object) -> dict:
    given = {"number": number, "annotator": name, "authentic": authentic, "coherent": True} | more
    return client.post("/answer", json=given).json()


def test_two_annotators_decide_and_a_third_where_they_differ(collected: Path) -> None:
    client = TestClient(create_review(*opened(collected)), **HOST)
    assert client.get("/next", params={"annotator": "Amal"}).json()["pair"]["concept"] == "Karnak"
    for number in range(3):
        state = answer(client, number, "Amal")
    assert state["pair"] is None
    assert answer(client, 0, "Omar")["pair"]["note"] == "also collected as: Zar"
    assert answer(client, 1, "Omar", authentic=False)["progress"]["disputed"] == 1
    third = client.get("/next", params={"annotator": "Nur"}).json()
    assert (third["pair"]["number"], third["progress"]["waiting"]) == (1, 2)  # Karnak is decided
    assert "decided" in answer(client, 0, "Nur")["error"]
    assert answer(client, 1, "Nur")["progress"]["validated"] == 2
    # The refused one comes with the pair that is next, so that nobody is held up by others.
    given = {"number": 0, "annotator": "Nur", "authentic": True, "coherent": True}
    refused = client.post("/answer", json=given)
    assert (refused.status_code, refused.json()["pair"]["number"]) == (409, 2)
    # An annotator is one person, however the name is written.
    assert answer(client, 2, " amal ")["progress"]["validated"] == 2
    assert [*Judgements(collected / ANSWERS).of_key["<b>Zar</b>"]] == ["Amal"]
    # An annotator may change an answer; the file has both, and the last one counts.
    assert answer(client, 0, "Omar", authentic=False)["progress"]["disputed"] == 1
    assert [Judgements(collected / ANSWERS).status(name) for name in NAMES] == ["disputed", "validated", "unchecked"]


def test_answers_survive_a_kill_and_damage_is_said(collected: Path) -> None:
    file = collected / ANSWERS
    whole = json.dumps({"key": "Karnak", "annotator": "Amal", "authentic": True, "coherent": True}) + "\n"
    file.write_text(whole + whole[:30])
    judgements = Judgements(file)
    assert file.read_text() == whole + whole[:30]  # as another process may be about to end this line
    judgements.add(Judgement("Karnak", "Omar", True, True))
    assert Judgements(file).status("Karnak") == "validated"
    assert len(file.read_text().splitlines()) == 2
    file.write_text(whole + '{"key": 1}\n')
    with pytest.raises(UserError, match=r"Line 2 of .* is no answer"):
        Judgements(file)


def test_an_answer_that_does_not_fit_on_the_disk_leaves_the_others(collected: Path) -> None:
    resource = pytest.importorskip("resource")
    client = TestClient(create_review(*opened(collected)), **HOST)
    answer(client, 0, "Amal")
    kept = (collected / ANSWERS).read_bytes()
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 20, limits[1]))
    try:
        said = answer(client, 1, "Amal")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "answers.jsonl cannot be written" in said["error"]
    assert (collected / ANSWERS).read_bytes() == kept
    assert answer(client, 1, "Amal")["progress"]["answered"] == 2
    assert len(Judgements(collected / ANSWERS).of_key) == 2


@pytest.mark.parametrize("link", [True, False])
def test_answers_are_kept_in_the_folder_itself(collected: Path, link: bool) -> None:
    """A folder of somebody else may have a link to a file that is none of a review."""
    other = collected.parent / "other.txt"
    other.write_text("a text without end")
    (collected / ANSWERS).symlink_to(other) if link else (collected / ANSWERS).mkdir()
    with pytest.raises(UserError, match="is a link or no file"):
        Judgements(collected / ANSWERS)
    assert other.read_text() == "a text without end"


def test_requests_from_elsewhere_are_refused_and_open_nothing(collected: Path) -> None:
    client = TestClient(create_review(*opened(collected)), **HOST)
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403  # DNS rebinding
    given = {"number": 0, "annotator": "Amal", "authentic": True, "coherent": True}
    assert client.post("/answer", json=given, headers={"Origin": "http://evil.example"}).status_code == 403
    asked = [("cross-site", "/image/0", 403), ("same-site", "/next?annotator=a", 403), ("cross-site", "/", 200),
             ("same-origin", "/image/0", 200), ("none", "/", 200)]  # fmt: skip
    for site, path, status in asked:
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate" if path == "/" else "no-cors"}
        assert client.get(path, headers=headers).status_code == status, (site, path)
    assert client.post("/answer", content=json.dumps(given), headers={"Content-Type": "text/plain"}).status_code == 403
    for strange in ({"number": 3}, {"number": -1}, {"number": True}, {"number": "0"}, {"authentic": 1}, {"key": "x"},
                    {"annotator": "../a"}, {"annotator": " "}, {"annotator": "a" * 3000}):  # fmt: skip
        assert client.post("/answer", json=given | strange).status_code == 400, strange
    for path in ("/image/9", "/image/..%2Fcorpus.json", "/pair/-1?annotator=a", "/next?annotator=%00"):
        assert client.get(path).status_code in (400, 404, 422), path
    assert not (collected / ANSWERS).exists()
    assert client.get("/image/0").content[:4] == b"\x89PNG"
    assert "script-src 'sha256-" in client.get("/").headers["content-security-policy"]


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver")
def test_a_person_clicks_through_the_page(collected: Path) -> None:
    from selenium import webdriver

    command = [sys.executable, "-m", "polymodal", "review", str(collected), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = None
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        browser.get(address)
        browser.find_element("id", "name").send_keys("Amal\n")
        for n, name in enumerate(NAMES):
            wait(lambda name=name: browser.find_element("id", "concept").text == name)  # also <b>, as text
            wait(lambda: browser.execute_script("return document.getElementById('image').naturalWidth") == 240)
            browser.find_element("css selector", "[data-question=authentic] [data-answer=true]").click()
            no_or_yes = "false" if n == 1 else "true"
            browser.find_element("css selector", f"[data-question=coherent] [data-answer={no_or_yes}]").click()
            browser.find_element("id", "save").click()
        wait(lambda: browser.find_element("id", "done").is_displayed())
        severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [entry for entry in severe if "favicon" not in entry["message"]]
    finally:
        if browser is not None:
            browser.quit()
        server.terminate()
        server.wait(timeout=30)
    votes = [json.loads(line) for line in (collected / ANSWERS).read_text().splitlines()]
    assert [(vote["key"], vote["annotator"], vote["coherent"]) for vote in votes] == [
        ("Karnak", "Amal", True), ("Koshari", "Amal", False), ("<b>Zar</b>", "Amal", True),
    ]  # fmt: skip


def wait(ready, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_kappa_counts_agreement_beyond_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    votes = rng.random((200, 2)) < 0.7
    given = [Judgement(str(n), "ab"[one], bool(pair[one]), True) for n, pair in enumerate(votes) for one in (0, 1)]
    judgements = Judgements(tmp_path / ANSWERS, given)
    observed = float((votes[:, 0] == votes[:, 1]).mean())
    yes = votes.mean(axis=0)
    chance = float(yes.prod() + (1 - yes).prod())
    assert judgements.kappa()["authentic"] == pytest.approx((observed - chance) / (1 - chance))
    assert np.isnan(judgements.kappa()["coherent"])
