"""What a terminal does to a command: it is closed, it is narrow, its user presses Ctrl-C twice."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from test_corpora import pairs

SMALL = ("--batch-size", "16", "--budget", "3steps")
SLOW_TO_SAVE = """
import threading, time
from polymodal.training.checkpoint import CheckpointWriter

def wait(self):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("saving", flush=True)
    time.sleep(60)

CheckpointWriter.wait = wait
from polymodal.cli import main
main()
"""


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    pq.write_table(pa.Table.from_pylist(pairs(60)), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def wait_until(there, seconds=60):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def long_training(own_data, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    words = ["train", "clip", "--data", str(own_data), "--batch-size", "16", "--budget", "9000steps", "--out", "run"]
    return words, {"cwd": tmp_path, "env": os.environ | {"POLYMODAL_CACHE": str(tmp_path / "cache")}}


def test_a_closed_terminal_leaves_a_saved_run(own_data, tmp_path):
    words, place = long_training(own_data, tmp_path)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(place["cwd"])
        os.execve(sys.executable, [sys.executable, "-m", "polymodal", *words], place["env"])
    shown = b""
    wait_until(lambda: (tmp_path / "run" / "processor.json").exists() or any((tmp_path / "run").glob("*.json")))
    while b"%" not in shown:  # steps are shown
        shown += os.read(master, 1 << 16)
    os.close(master)  # the kernel sends SIGHUP, and writing fails from now on
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "interrupted"
    assert "SIGHUP" in record["stopped_by"]
    assert list((tmp_path / "run").glob("checkpoint-*"))


def test_sighup_says_so_in_a_log(own_data, tmp_path):
    words, place = long_training(own_data, tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "polymodal", *words], stderr=subprocess.PIPE, text=True, **place)
    wait_until((tmp_path / "run" / "run.json").exists)
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert "Stopped by SIGHUP (the terminal was closed) and saved at step" in said.strip().splitlines()[-1]


def test_a_second_ctrl_c_ends_at_once(own_data, tmp_path):
    words, place = long_training(own_data, tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_SAVE, *words], **pipes, **place)
    wait_until((tmp_path / "run" / "run.json").exists)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].endswith("go on from the last checkpoint with: polymodal resume run")


def test_a_finished_run_says_that_it_was_finished_and_whether_the_data_changed(polymodal, own_data, tmp_path):
    data = tmp_path / "pairs.parquet"
    data.write_bytes(own_data.read_bytes())
    words = ("train", "clip", "--data", str(data), *SMALL, "--out", "run")
    first = polymodal(*words)
    assert first.stdout.startswith("Trained 3 steps")
    again = polymodal(*words)
    assert again.stdout.startswith("run was finished before, and nothing was trained: 3 steps")
    assert "data changed" not in again.stdout
    changed = [row | {"caption": f"not {row['caption']}"} if "caption" in row else row for row in pairs(60)]
    changed = [{name: f"not {v}" if isinstance(v, str) else v for name, v in row.items()} for row in changed]
    pq.write_table(pa.Table.from_pylist(changed), data)
    again = polymodal(*words)
    assert "The data changed since run was trained" in again.stdout, again.stdout + again.stderr


def test_search_says_what_it_searches_and_overwrites_nothing(polymodal, own_data, tmp_path):
    assert polymodal("train", "clip", "--data", str(own_data), *SMALL, "--out", "run").returncode == 0
    (tmp_path / "contact-sheet.png").write_text("mine")
    done = polymodal("search", "run", "a thing", "--top", "2")
    assert done.stdout.startswith("Searched all 60 rows of pairs; --split test searches the "), done.stderr
    assert "The images are in contact-sheet-2.png." in done.stdout
    assert (tmp_path / "contact-sheet.png").read_text() == "mine"
    done = polymodal("search", "run", "a thing", "--split", "test", "--out", "contact-sheet.png")
    assert "rows of the split 'test' of pairs, of 60." in done.stdout
    assert "contact-sheet.png (in place of the file that was there)" in done.stdout
    assert polymodal("index", "run", "--out", "index").returncode == 0
    assert polymodal("search", "index", "a thing").stdout.startswith("Searched the 60 rows of index.")


def test_embed_writes_what_the_suffix_says(polymodal, own_data, tmp_path):
    assert polymodal("train", "clip", "--data", str(own_data), *SMALL, "--out", "run").returncode == 0
    for name in ("v.parquet", "v.csv", "v.npz"):
        done = polymodal("embed", "run", "--out", name)
        assert done.returncode == 0, done.stderr
    wanted = pq.read_table(tmp_path / "v.parquet")
    images = np.array(wanted["image"].to_pylist(), np.float32)
    table = pacsv.read_csv(tmp_path / "v.csv")
    assert [*map(str, table["key"].to_pylist())] == wanted["key"].to_pylist()
    np.testing.assert_allclose(table["image_3"].to_numpy(), images[:, 3], atol=1e-6)
    arrays = np.load(tmp_path / "v.npz")
    assert [*arrays["key"]] == wanted["key"].to_pylist()
    np.testing.assert_allclose(arrays["image"], images, atol=1e-6)
    done = polymodal("embed", "run", "--out", "v.npy")
    assert (done.returncode, "this run embeds" in done.stderr) == (2, True)
    assert not (tmp_path / "v.npy").exists()
    assert polymodal("embed", "run", "--out", "v.npy", "--column", "image").returncode == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), images, atol=1e-6)
    done = polymodal("embed", "run", "--out", "v.txt")
    assert (done.returncode, "v.txt is none of these" in done.stderr) == (2, True)
