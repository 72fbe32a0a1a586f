"""SIGTERM and SIGHUP end every command as Ctrl-C does, and a lack of file descriptors is named as what it is."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import synthetic
from polymodal import cli
from polymodal.data import loader
from polymodal.data.loader import Reader, TrainingData, killed_workers
from polymodal.data.processor import fit_processor
from polymodal.end_signals import Ended, end_signals
from polymodal.errors import UserError, read_errors
from polymodal.files import open_regular
from polymodal.modalities.modality import read_file
from polymodal.recipes.dual_encoders import clip
from polymodal.training import train
from polymodal.training.runtime import RuntimeConfig
from polymodal.types import Budget

# A command that holds a lock, a temporary file and a child process, and is busy until it is ended.
BUSY = """
import subprocess, sys, time
from pathlib import Path
from polymodal import cli
from polymodal.files import written_aside
from polymodal.training.folder_lock import lock_folder

def busy(arguments):
    "wait"
    with lock_folder(Path("out"), "written", "wait"), written_aside(Path("page.html")) as aside:
        child = subprocess.Popen(["sleep", "60"])
        try:
            aside.write_text("half")
            print(child.pid, flush=True)
            time.sleep(60)
        finally:
            child.kill()

cli.COMMANDS["busy"] = busy
cli.main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_no_half_file_lock_or_child(name, tmp_path):
    (tmp_path / "page.html").write_text("whole")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", BUSY, "busy"], cwd=tmp_path, **pipes)
    child = int(process.stdout.readline())
    assert (tmp_path / ".page.html.partial").exists()
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = told.strip().splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith("polymodal: stopped")
    assert name == "SIGINT" or name in lines[0]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page.html": "whole"}
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_ignored_signals_stay_ignored_and_others_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with end_signals():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(Ended, match="stopped by SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a second one ends at once"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


RENDERING = """
import time
from polymodal import cli
from polymodal.corpora.pages import browser

def rendering(arguments):
    "render"
    with browser():
        print("rendering", flush=True)
        time.sleep(60)

cli.COMMANDS["rendering"] = rendering
cli.main()
"""


def lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no browser")
def test_no_browser_stays_behind(tmp_path):
    pytest.importorskip("selenium")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", RENDERING, "rendering"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes)
    assert process.stdout.readline() == "rendering\n", process.stderr.read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    ends = time.monotonic() + 20
    while lives(process.pid):
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    train(
        clip.Recipe.tiny(),
        synthetic.corpus(folder.parent / "data"),
        Budget(steps=1),
        out=folder,
        runtime=RuntimeConfig(logger="none"),
    )
    return folder


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_server_answers_what_it_accepted_and_ends_with_status_0(name, run):
    command = [sys.executable, "-m", "polymodal", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+) ", process.stdout.readline())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"text": ["a red cross"]}).encode()
        connection.putrequest("POST", "/embed")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5])
        time.sleep(0.5)
        process.send_signal(getattr(signal, name))
        time.sleep(0.5)
        connection.send(body[5:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["text"]) == 1
        _, told = process.communicate(timeout=30)
        assert (process.returncode, told) == (0, "")
    finally:
        process.kill()


def test_a_lack_of_descriptors_is_no_fault_of_a_file(monkeypatch, tmp_path, capsys):
    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.png")

    monkeypatch.setattr("polymodal.modalities.modality.open_regular", refuses)
    limit = rf"Too many files are open at the same time \(ulimit -n: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}\)"
    with pytest.raises(UserError, match=limit):
        read_file("a.png", tmp_path, "image")
    with pytest.raises(UserError, match=limit), read_errors(tmp_path, "train it again"):
        refuses()
    with pytest.raises(UserError, match=limit), killed_workers():
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")
    monkeypatch.setitem(cli.COMMANDS, "list", refuses)
    monkeypatch.setattr(sys, "argv", ["polymodal", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert re.search(limit, capsys.readouterr().err)
    assert open_regular(__file__).read(3) == b'"""'


def test_too_many_worker_processes_for_the_limit_of_files(monkeypatch, corpus):
    monkeypatch.setattr(loader, "raise_open_files", lambda needed: 39)
    reader = Reader(corpus, fit_processor(clip.Recipe.tiny(), corpus))
    with pytest.raises(UserError, match=r"--num-workers 2 need 40 open files, and the limit is 39 \(ulimit -n\)"):
        TrainingData(reader, 4, 0, lambda *_: {}, num_workers=2)
