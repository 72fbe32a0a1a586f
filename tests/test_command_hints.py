"""Help, version, completion, hints at flags of other programs, budgets in epochs, and what comes next."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PILImage

from polymodal.cli._completion import candidates
from polymodal.cli._next_steps import filled, next_steps
from polymodal.corpora import from_path
from polymodal.errors import UserError
from polymodal.types import Budget

CAPTIONS = ['a dog\'s "red" bowl', "a blue house", "a green car", "a yellow hat"]


@pytest.fixture
def own_data(tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["image,caption"]
    for n in range(60):
        PILImage.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"image {n}.png")
        lines.append(f'image {n}.png,"{CAPTIONS[n % 4].replace(chr(34), chr(34) * 2)} {n}"')
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def test_help_and_version(polymodal):
    assert polymodal("version").stdout == polymodal("--version").stdout
    assert polymodal("help").stdout == polymodal("--help").stdout
    assert polymodal("help", "evaluate").stdout == polymodal("evaluate", "--help").stdout
    assert "did you mean 'train'" in polymodal("help", "trian").stderr
    assert "--local-weight" in polymodal("help", "train", "sparc").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_of_their_shell(polymodal, shell):
    text = polymodal("completion", shell).stdout
    assert "polymodal completion words" in text
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0
    assert polymodal("completion", "tcsh").returncode == 2


def test_bash_completes_commands_recipes_and_flags(polymodal, tmp_path):
    program = tmp_path / "polymodal"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m polymodal "$@"\n')
    program.chmod(0o755)
    text = polymodal("completion", "bash").stdout

    def completed(*words):
        line = f"COMP_WORDS=(polymodal {shlex.join(words)}); COMP_CWORD={len(words)}; PATH={tmp_path}:$PATH; _polymodal"
        done = subprocess.run(
            ["bash", "-c", f'{text}\n{line}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    assert completed("tr") == ["train"]
    assert completed("train", "spa") == ["sparc"]
    assert completed("train", "sparc", "--local-w") == ["--local-weight"]
    assert completed("train", "sparc", "--corpus", "emoji_r") == ["emoji_records"]


def test_runs_are_completed_at_most_three_folders_deep(tmp_path, monkeypatch):
    for place in ("clip", "runs/a/b", "much/deeper/than/that"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    assert candidates(["evaluate", ""], (), lambda command, words: None) == ["clip", "runs/a/b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epochs", "3"), "--budget 3epochs"),
        (("--lr", "1e-4"), "write --learning-rate 1e-4"),
        (("--lr=1e-4",), "write --learning-rate 1e-4"),
        (("--precision", "bf16"), "write --precision bfloat16"),
        (("--bf16",), "write --precision bfloat16"),
    ],
)
def test_flags_of_other_programs_are_hinted_at(polymodal, words, said):
    done = polymodal("train", "clip", "--corpus", "emoji", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_file_of_the_recipes_name_is_hinted_at(polymodal, tmp_path):
    assert polymodal("new", "my_method").returncode == 0
    done = polymodal("train", "my_method", "--corpus", "emoji")
    assert (done.returncode, "write ./my_method.py" in done.stderr) == (2, True)


def test_budgets_in_epochs():
    assert Budget.parse("3epochs", 100) == Budget(examples=300)
    assert Budget.parse("0.5 epochs", 100) == Budget.parse("50examples")
    assert Budget.parse("1epoch", 7) == Budget(examples=7)
    for text, rows in (("3epochs", 0), ("0epochs", 0)):
        with pytest.raises(UserError, match="is not a budget"):
            Budget.parse(text, rows)


def test_training_in_epochs_suggests_what_the_run_can_do(polymodal, own_data, tmp_path):
    out = "my run"
    words = ("--data", str(own_data), "--batch-size", "8", "--budget", "2epochs", "--out", out)
    done = polymodal("train", "clip", *words)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / out / "run.json").read_text())
    rows = len(from_path(own_data).rows("train"))
    assert record["budget"] == f"{2 * rows}examples"
    assert 2 * rows <= record["examples"] < 2 * rows + 8
    steps = done.stdout[done.stdout.index("Next: ") + 6 :].strip().splitlines()
    commands = [shlex.split(line) for line in steps]
    assert commands[0] == ["polymodal", "evaluate", out]
    search = next(command for command in commands if command[1] == "search")
    assert search[2] == out
    assert any(search[3].startswith(caption[:6]) for caption in CAPTIONS)
    assert polymodal(*search[1:]).returncode == 0, "it can be pasted"
    assert polymodal("train", "clip", *words).stdout.startswith("my run was finished before")


def test_questions_and_images_of_the_data_are_quoted(tmp_path):
    PILImage.new("RGB", (8, 8)).save(tmp_path / "an image.png")
    rows = [{"image": "an image.png", "questions": [{"question": "What's it?", "answer": "a bowl"}]}] * 10
    (tmp_path / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = from_path(tmp_path / "vqa.jsonl")
    line = next_steps([filled("ask RUN IMAGE --question QUESTION", corpus)], "a run")
    wanted = ["polymodal", "ask", "a run", str(tmp_path / "an image.png"), "--question", "What's it?"]
    assert shlex.split(line.removeprefix("Next: ")) == wanted
