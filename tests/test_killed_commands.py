"""Commands that write are killed at random instants: started again, they end with what an undisturbed one leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from killed_commands import COMMANDS
from polymodal.files import remove_folder, remove_removed, written_aside

SEED = os.environ.get("POLYMODAL_FUZZ_SEED", "0")


def killed(folder: Path, kills: int, *commands: str) -> list[tuple[int, int]]:
    """For each command, how many kills hit it, and how many left something half-written."""
    process = [sys.executable, "tests/killed_commands.py", str(folder), str(kills), SEED, *commands]
    done = subprocess.run(process, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, f"seed {SEED}: {done.stdout}{done.stderr}"
    return [tuple(map(int, line.split()[1:3])) for line in done.stdout.splitlines()]


def test_killed_commands_are_repeated(tmp_path: Path) -> None:
    hits, half = zip(*killed(tmp_path, 2, "embed", "sample-preferences"), strict=True)
    assert hits == (2, 2)
    assert sum(half) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_killed(command: str, tmp_path: Path) -> None:
    ((hits, _),) = killed(tmp_path, 30, command)
    assert hits == 30


def test_a_file_stays_as_it_was_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    aside = written_aside(file)
    aside.__enter__().write_text("ha")
    assert not aside.__exit__(RuntimeError, RuntimeError("stopped"), None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
    with written_aside(file) as aside:
        aside.write_text("new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "new")]
    with pytest.raises(IsADirectoryError), written_aside(Path(".")):
        pass


def test_a_folder_is_gone_before_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "000000.parquet").write_text("pages")
    removed = []

    def kill(place: Path, **_: object) -> None:
        if place.exists():
            removed.append((place, folder.exists()))
            raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", kill)
        with pytest.raises(SystemExit):
            remove_folder(folder)
    assert removed == [(tmp_path / "shards.removed", False)]
    remove_removed(folder)
    assert list(tmp_path.iterdir()) == []
